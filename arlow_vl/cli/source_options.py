"""Options and progress of the commands that read sources."""

import argparse
import time
from pathlib import Path
from typing import Any

from arlow_vl.cli.parser import Parser, positive_int, share
from arlow_vl.cores import cores
from arlow_vl.printing import number_of
from arlow_vl.progress import Display

LISTED = 50
"""Most bad samples and texts that are named for people."""


def add_source_options(command: Parser) -> None:
    command.add_argument("--images", type=Path, metavar="ROOT", help="folder that image paths are relative to")
    command.add_argument("--format", metavar="NAME", help="format of the source (default: detected)")
    command.add_argument(
        "--workers",
        type=positive_int,
        default=cores(),
        metavar="N",
        help="processes (default: one per core)",
    )


def add_limit_option(command: Parser, *, of: str = "samples, or of texts,") -> None:
    command.add_argument(
        "--max-bad-fraction",
        type=share,
        default=0.1,
        metavar="SHARE",
        help=f"largest share of {of} that may be unusable, as in a recipe (default: 0.1)",
    )


def indexes_with_progress(
    source: str, args: argparse.Namespace, *, shows_progress: bool = True, may_be_empty: bool = False
) -> Any:
    """Returns the indexes of a source, and writes missing ones. Raises DataError if no sample is usable."""
    from arlow_vl.data.index.building import indexes_of
    from arlow_vl.data.index.report import refuse_nothing
    from arlow_vl.data.text_files import shown_source

    reporting: dict[str, Any] = {"progress": IndexProgress()} if shows_progress else {}
    indexes = indexes_of(source, images=args.images, format=args.format, workers=args.workers, **reporting)
    if not may_be_empty:
        refuse_nothing(indexes, shown_source(source))
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
