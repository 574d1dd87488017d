"""`arlow tokenizer`: trains a tokenizer on text."""

import argparse
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from arlow_vl.cli.parser import Parser, output_folder, positive_int
from arlow_vl.cli.source_options import add_limit_option
from arlow_vl.printing import number_of, print_line

if TYPE_CHECKING:
    from arlow_vl.data.text_files import TextFiles

MOST_ENTRIES = 2**20  # more than any model has; the training takes memory for all of them at once
EXAMPLE = "arlow tokenizer train data/text/train.jsonl --vocab-size 4096 --output tokenizer"


def add_parser(arlow: Parser) -> None:
    verbs = arlow.add_command("tokenizer", "train a tokenizer", EXAMPLE)
    train = verbs.add_command(
        "train",
        "learn a byte-level BPE vocabulary from text",
        EXAMPLE,
        "arlow tokenizer train book.txt --vocab-size 1000 --max-bytes 1000000 --output tokenizer",
    )
    train.add_argument(
        "texts",
        nargs="+",
        metavar="TEXT",
        help="what `arlow data tokenize` takes: a file, folder, glob or address of .jsonl, .jsonl.gz, .jsonl.zst, "
        ".parquet or .arrow (the document under 'text'), or .txt (a document a file)",
    )
    train.add_argument(
        "--vocab-size",
        type=positive_int,
        required=True,
        metavar="N",
        help="entries of the vocabulary, special tokens included",
    )
    train.add_argument(
        "--output", type=output_folder, required=True, metavar="DIR", help="folder for the tokenizer's files"
    )
    train.add_argument(
        "--max-bytes", type=positive_int, metavar="N", help="learn from the first N bytes of text only (default: all)"
    )
    add_limit_option(train, of="the lines, rows or documents")
    train.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> None:
    if args.vocab_size > MOST_ENTRIES:
        raise ValueError(f"--vocab-size must be at most {MOST_ENTRIES:,}, got {args.vocab_size:,}")
    from arlow_vl.data.remote_cache import naming_addresses
    from arlow_vl.data.text_files import shown_source, text_files
    from arlow_vl.models.folder_files import refuse_full_folder

    refuse_full_folder(args.output)  # models were trained with the tokenizer that may lie there
    tally: Counter[str] = Counter()
    with contextlib.closing(text_files(args.texts)) as files, naming_addresses(files.held):
        from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer  # loads torch, which takes seconds
        from arlow_vl.models.folder_writing import save_folder

        where = ", ".join(map(shown_source, args.texts))
        documents = usable_documents(files, where, args.max_bytes, tally, max_bad_fraction=args.max_bad_fraction)
        tokenizer = train_tokenizer(documents, args.vocab_size)
    save_folder([tokenizer], args.output)
    source = f"{tally['bytes']:,} bytes in {number_of(tally['documents'], 'document')}"
    print_line(f"{args.output}: {len(tokenizer):,} entries, learned from {source}")


def usable_documents(
    files: "TextFiles", where: str, max_bytes: int | None, tally: Counter[str], *, max_bad_fraction: float
) -> Iterator[str]:
    """Yields the files' documents up to `max_bytes`, then warns of what was skipped, before anything is learnt.

    Raises:
        DataError: too much was skipped.
        ValueError: `max_bytes` cut the first character.
    """
    from arlow_vl.data.text_files import TextPart
    from arlow_vl.data.text_readers import DocumentReader, mark_damaged
    from arlow_vl.data.tokens.manifest import merged

    readers: list[DocumentReader] = []

    def read() -> Iterator[str]:
        for path in files:
            readers.append(DocumentReader(TextPart(path, path.stat().st_size)))
            yield from readers[-1]

    yield from first_bytes(read(), max_bytes, tally)
    tallies = [(reader.part.path, reader.tally) for reader in readers]
    mark_damaged(files, tallies)
    merged(tallies).report(where, max_bad_fraction)


def first_bytes(documents: Iterator[str], limit: int | None, tally: Counter[str]) -> Iterator[str]:
    """Yields documents up to `limit` bytes of UTF-8, the last cut at a whole character; `tally` counts them."""
    for document in documents:
        raw = document.encode()
        if limit is not None and tally["bytes"] + len(raw) > limit:
            raw = raw[: limit - tally["bytes"]]
            document = raw.decode(errors="ignore")
            if not document and not tally["documents"]:
                raise ValueError(f"--max-bytes {limit} cuts the first character of the text; raise it")
        tally.update(documents=1, bytes=len(raw))
        yield document
        if tally["bytes"] == limit:
            return
