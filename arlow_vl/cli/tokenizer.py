"""`arlow tokenizer`: train the tokenizer on text."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def add_parser(subparsers) -> None:
    verbs = subparsers.add_parser("tokenizer", help="train a tokenizer").add_subparsers(required=True)
    train = verbs.add_parser("train", help="learn a byte-level BPE vocabulary from text")
    train.add_argument(
        "texts",
        type=Path,
        nargs="+",
        metavar="TEXT",
        help="a .jsonl file with a document under 'text' in each line; any other file is one UTF-8 document",
    )
    train.add_argument("--vocab-size", type=int, required=True, metavar="N", help="entries, special tokens included")
    train.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the tokenizer's files")
    train.add_argument("--max-bytes", type=int, metavar="N", help="learn from the first N bytes of text only")
    train.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> None:
    if args.max_bytes is not None and args.max_bytes < 1:
        raise ValueError(f"--max-bytes must be at least 1, got {args.max_bytes}")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output} is a file; name a folder")
    from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer

    tally: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    documents = first_bytes(read_documents(args.texts, skipped), args.max_bytes, tally)
    tokenizer = train_tokenizer(documents, args.vocab_size)
    tokenizer.save_pretrained(args.output)
    for reason, count in skipped.most_common():
        print(f"skipped {count:,} lines: {reason}")
    source = f"{tally['bytes']:,} bytes in {tally['documents']:,} documents"
    print(f"{args.output}: {len(tokenizer):,} entries, learned from {source}")


def read_documents(paths: list[Path], skipped: Counter[str]) -> Iterator[str]:
    from arlow_vl.data.text import read_jsonl, read_text_file

    for path in paths:
        if path.suffix == ".jsonl":
            yield from read_jsonl(path, skipped)
        else:
            yield read_text_file(path)


def first_bytes(documents: Iterator[str], limit: int | None, tally: Counter[str]) -> Iterator[str]:
    """The documents up to `limit` bytes of UTF-8, the last one cut at a whole character; `tally` counts them."""
    for document in documents:
        raw = document.encode()
        if limit is not None and tally["bytes"] + len(raw) > limit:
            raw = raw[: limit - tally["bytes"]]
            document = raw.decode(errors="ignore")
        tally.update(documents=1, bytes=len(raw))
        yield document
        if tally["bytes"] == limit:
            return
