"""`arlow data overlap`: images of one source that are in another, or twice in one."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from arlow_vl.cli.parser import Parser
from arlow_vl.cli.source_options import add_source_options, indexes_with_progress
from arlow_vl.printing import number_of, print_line

MOST_BITS = 14
LISTED = 50
"""Most pairs of a kind that are named for people."""


def add_parser(verbs: Parser) -> None:
    overlap = verbs.add_command(
        "overlap",
        "find images of B that are in A, or nearly, and duplicates within each",
        "arlow data overlap training/ test/",
        "arlow data overlap 'shards/train-*.tar' 'shards/test-*.tar' --json",
        description="List pairs of images with the same bytes or nearly the same look, and the share of B that is in "
        "A. Exits with 0 whatever it finds.",
    )
    overlap.add_argument("first", metavar="A", help="folder, file or glob; docs/formats.md lists the formats")
    overlap.add_argument("second", metavar="B", help="source to compare with A")
    add_source_options(overlap)
    overlap.add_argument(
        "--max-bits",
        type=bits,
        default=MOST_BITS,
        metavar="N",
        help=f"bits of 256 in which near duplicates differ at most, 0 to {MOST_BITS} (default: {MOST_BITS})",
    )
    overlap.add_argument("--json", action="store_true", help="print one JSON object that names every pair")
    overlap.set_defaults(run=run)


def bits(text: str) -> int:
    """The type of `--max-bits`."""
    if not text.isdecimal() or not text.isascii() or int(text) > MOST_BITS:
        raise argparse.ArgumentTypeError(f"is a whole number from 0 to {MOST_BITS}, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.data.overlap.sources import overlap_of
    from arlow_vl.data.text_files import shown_source
    from arlow_vl.progress import ProgressLine

    shows_progress = not args.json
    indexes = [
        indexes_with_progress(source, args, shows_progress=shows_progress) for source in (args.first, args.second)
    ]
    how: dict[str, Any] = {"progress": ProgressLine("overlap", "images")} if shows_progress else {}
    found = overlap_of(*indexes, most_bits=args.max_bits, workers=args.workers, **how)
    names = shown_source(args.first), shown_source(args.second)
    for line in [json.dumps(report_of(found))] if args.json else report_lines(found, *names):
        print_line(line)


def report_of(found: Any) -> dict[str, Any]:
    """Returns all findings for programs; docs/data.md explains each key."""
    sides = {
        name: {
            "samples": side.samples,
            "images": side.images,
            "different_images": side.different,
            "unreadable": dict(side.unreadable),
            "pairs": [pair._asdict() for pair in side.pairs],
        }
        for name, side in (("a", found.first), ("b", found.second))
    }
    b_in_a = {
        "images": len(found.across),
        "exact_images": sum(pair.exact for pair in found.across),
        "samples": found.samples,
        "share_of_images": found.share_of_images,
        "share_of_samples": found.share_of_samples,
        "pairs": [pair._asdict() for pair in found.across],
    }
    return {**sides, "b_in_a": b_in_a, "is_complete": found.is_complete}


def report_lines(found: Any, first: str, second: str) -> Iterator[str]:
    """Yields the findings for people: counts, then pairs up to a limit, those of A and B first."""
    for name, side in (("A", found.first), ("B", found.second)):
        exact = sum(pair.exact for pair in side.pairs)
        pairs = f"{exact:,} exact and {len(side.pairs) - exact:,} near duplicates within"
        size = f"{number_of(side.samples, 'sample')}, {number_of(side.images, 'image')}"
        yield f"{name}  {first if name == 'A' else second}: {size}, {pairs}"
        if side.unreadable:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in side.unreadable.most_common())
            yield f"   {number_of(side.unreadable.total(), 'image')} compared by their bytes alone ({reasons})"
    exact = sum(pair.exact for pair in found.across)
    yield (
        f"of B in A: {number_of(len(found.across), 'image')}, {found.share_of_images:.2%} ({exact:,} exact, "
        f"{len(found.across) - exact:,} near), of {number_of(found.samples, 'sample')}, {found.share_of_samples:.2%}"
    )
    if not found.is_complete:
        yield "over 1,000,000 near pairs: there are more than are counted here; lower --max-bits"
    for what, pairs in (("A, B", found.across), ("within A", found.first.pairs), ("within B", found.second.pairs)):
        for pair in pairs[:LISTED]:
            how = "same bytes" if pair.exact else f"{pair.distance} of 256 bits differ"
            yield f"{what}: {pair.first}, {pair.second}: {how}"
        if len(pairs) > LISTED:
            yield f"... and {len(pairs) - LISTED:,} more; --json names them all"
