"""`arlow data index`, and options and progress of all commands that read sources."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from arlow_vl.cli.parser import Parser, positive_int, share
from arlow_vl.printing import number_of, print_line
from arlow_vl.progress import Display
from arlow_vl.stopping import AGAIN

DATA = 3  # exit status for bad data
LISTED = 50
"""Most bad samples and texts that are named for people."""
EXAMPLE = "arlow data index shards/"


def add_parser(verbs: Parser) -> None:
    index = verbs.add_command(
        "index",
        "write the indexes of sources beside them, so that a run starts at once",
        EXAMPLE,
        "arlow data index captions.json --images photos/",
        description="Write the indexes of sources beside them. Exits with 0 "
        "if training may start, with 3 if a file is damaged or too much is unusable.",
    )
    index.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="folder, file or glob; docs/formats.md lists the formats"
    )
    add_source_options(index)
    add_limit_option(index)
    index.set_defaults(run=run, again=AGAIN)


def add_source_options(command: Parser) -> None:
    command.add_argument("--images", type=Path, metavar="ROOT", help="folder that image paths are relative to")
    command.add_argument("--format", metavar="NAME", help="format of the source (default: detected)")
    command.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default: one per core)",
    )


def add_limit_option(command: Parser) -> None:
    command.add_argument(
        "--max-bad-fraction",
        type=share,
        default=0.1,
        metavar="SHARE",
        help="largest share of samples, or of texts, that may be unusable, as in a recipe (default: 0.1)",
    )


def run(args: argparse.Namespace) -> int:
    from arlow_vl.data.index.told import check_left_out, faults_of, told
    from arlow_vl.data.text_files import told_text
    from arlow_vl.errors import DataError

    status = 0
    for source in args.sources:
        indexes = indexes_with_progress(source, args, may_be_empty=True)
        for line in told(indexes, LISTED):
            print_line(line)
        if faults_of(indexes):
            status = DATA
        try:
            check_left_out(indexes, args.max_bad_fraction, where=told_text(source))
        except DataError as error:
            print_line(f"arlow: {error}", file=sys.stderr)
            status = DATA
    return status


def indexes_with_progress(
    source: str, args: argparse.Namespace, *, is_told: bool = True, may_be_empty: bool = False
) -> Any:
    """Returns the indexes of a source, and writes missing ones. Raises DataError if no sample is usable."""
    from arlow_vl.data.index.building import indexes_of
    from arlow_vl.data.index.told import refuse_nothing
    from arlow_vl.data.text_files import told_text

    told: dict[str, Any] = {"progress": IndexProgress()} if is_told else {}
    indexes = indexes_of(source, images=args.images, format=args.format, workers=args.workers, **told)
    if not may_be_empty:
        refuse_nothing(indexes, told_text(source))
    return indexes


class IndexProgress:
    """`index: 3 of 40 files, 3,000 samples, 8,400 samples/s`, counting what had no index yet."""

    def __init__(self) -> None:
        self.display = Display()
        self.began = time.monotonic()

    def __call__(self, samples: int, ready: int, parts: int) -> None:
        if ready == parts or self.display.is_due:
            rate = samples / max(time.monotonic() - self.began, 1e-9)
            done = f"{ready:,} of {number_of(parts, 'file')}, {number_of(samples, 'sample')}"
            self.display.show(f"index: {done}, {rate:,.0f} samples/s", stays=ready == parts)
