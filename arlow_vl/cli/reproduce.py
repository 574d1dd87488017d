"""`arlow reproduce`: derives every figure of a result folder again, and says which are equal."""

import argparse
from collections import Counter
from pathlib import Path

from arlow_vl.cli.parser import Parser
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "reproduce",
        "derive the figures of results again from their predictions",
        "arlow reproduce results",
        description="Derive every figure of a result folder again from its predictions, and compare the hashes of "
        "model and data where they are still there. Prints for each whether it is equal, and exits with 3 if "
        "anything is not.",
    )
    parser.add_argument("results", type=Path, metavar="RESULT_DIR", help="result folder of `arlow evaluate`")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.errors import DataError
    from arlow_vl.evaluation.tasks.results import task_folders

    task_folders(args.results)  # refuses before what opens the data is loaded, which takes seconds

    from arlow_vl.evaluation.tasks.reproduce import reproduce

    counts: Counter[bool | None] = Counter()
    unequal = []
    for row in reproduce(args.results):
        counts[row.is_equal] += 1
        print_line(row)
        if row.is_equal is False:
            unequal.append(row.what)
    print_line(f"{counts[True]:,} equal, {counts[False]:,} unequal, {counts[None]:,} not here")
    if unequal:
        raise DataError(
            f"{args.results}: {len(unequal):,} of {counts.total():,} figures and hashes are unequal, the first is "
            f"{unequal[0]}; evaluate again, or put back what was changed"
        )
