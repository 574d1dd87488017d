"""A side index of a source: samples by number, mapped instead of read; see docs/data.md.

`<folder>/.arlow-index/<name>/` holds

    header.json      what it was made of and what was left out: all that opening reads
    records-*.jsonl  a line of JSON for each sample
    rows-*.npy       where each record begins, and counts, in rows of fixed width
    images-*.bin     images that have no place of their own, as those inside parquet
    bad-*.jsonl      all that was left out
"""
