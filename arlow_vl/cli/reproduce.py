"""`arlow reproduce`: derive every figure of a result folder again, and say which are equal."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "reproduce",
        "derive the figures of results again from their predictions",
        "arlow reproduce results",
        description="Derives every figure of a result folder again from its predictions, and compares the hashes of "
        "model and data where they are still there. Ends with status 1 if anything is unequal.",
    )
    parser.add_argument("results", type=Path, metavar="RESULT_DIR", help="result folder of `arlow evaluate`")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from arlow_vl.evaluation.tasks.reproduce import reproduce

    rows = []
    for row in reproduce(args.results):
        print_line(row)
        rows.append(row)
    unequal, absent = (sum(row.is_equal is verdict for row in rows) for verdict in (False, None))
    print_line(f"{len(rows) - unequal - absent:,} equal, {unequal:,} unequal, {absent:,} not here")
    return 1 if unequal else 0
