"""`arlow data tokenize`: turns text of any size into memory-mapped tokens."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_folder, positive_int
from arlow_vl.cli.source_options import add_limit_option
from arlow_vl.printing import number_of, print_line
from arlow_vl.stopping import AGAIN

EXAMPLE = "arlow data tokenize texts/*.parquet --tokenizer tokenizer --out tokens --workers 8"
MEGABYTE = 10**6


def add_parser(data: Parser) -> None:
    tokenize = data.add_command(
        "tokenize",
        "turn text into tokens on disk, which recipes name as train_text",
        EXAMPLE,
        "arlow data tokenize 'https://host/text/{000..099}.jsonl.zst' --tokenizer runs/text/hf --out tokens",
        description="Turn text into tokens on disk. Interrupted and run again, it resumes where it was. A run on the "
        "folder tokenizes nothing, and starts as fast on a terabyte as on a page.",
    )
    tokenize.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a file, folder, glob or address of .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .arrow (the document under "
        "'text'), or .txt (a document a file); or a folder that datasets' save_to_disk wrote",
    )
    tokenize.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder of a saved tokenizer")
    tokenize.add_argument(
        "--out", "--output", type=output_folder, required=True, metavar="DIR", help="folder for the tokens alone"
    )
    tokenize.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (default: 1)")
    tokenize.add_argument(
        "--shard-tokens",
        type=positive_int,
        default=2**26,
        metavar="N",
        help="a shard ends with the document that brings it to N tokens (default: 67,108,864)",
    )
    add_limit_option(tokenize, of="the lines, rows or documents")
    tokenize.set_defaults(run=run_tokenize, again=AGAIN)


def run_tokenize(args: argparse.Namespace) -> None:
    from arlow_vl.data.remote import is_address, listed
    from arlow_vl.data.text_files import text_files

    # Misspelt sources are reported before imports that take seconds.
    text_files([source for source in args.sources if not is_address(source)])
    for source in args.sources:
        if is_address(source):
            listed(source)
    from arlow_vl.data.tokens.shards import TokenLimits
    from arlow_vl.data.tokens.write import tokenize_text
    from arlow_vl.models.folders import load_tokenizer
    from arlow_vl.progress import ProgressLine

    line = ProgressLine("tokenising", "MB")
    text = tokenize_text(
        args.sources,
        load_tokenizer(args.tokenizer),
        args.out,
        limits=TokenLimits(shard_tokens=args.shard_tokens),
        workers=args.workers,
        max_bad_fraction=args.max_bad_fraction,
        progress=lambda done, total: line(megabytes(done, done == total), megabytes(total, True)),
    )
    manifest = text.manifest
    print_line(
        f"{args.out}: {number_of(manifest.documents, 'document')}, {manifest.utf8_bytes:,} bytes, "
        f"{number_of(manifest.tokens, 'token')} ({manifest.dtype}) in {number_of(len(manifest.shards), 'shard')}"
    )


def megabytes(count: int, is_whole: bool) -> int:
    """Rounds up for the total and down for a part, so that progress reaches the total only at the end."""
    return -(-count // MEGABYTE) if is_whole else count // MEGABYTE
