"""The side index of a source: its samples by number, memory-mapped; see docs/data.md.

`<folder>/.arlow-index/<name>/` holds

    header.json      the files it was made of and what was left out; opening an index reads only this
    records-*.jsonl  a line of JSON for each sample
    rows-*.npy       the offset of each record, and counts, in rows of fixed width
    images-*.bin     images that cannot be read in place, such as those inside parquet
    bad-*.jsonl      a line for each sample and text that was left out
"""
