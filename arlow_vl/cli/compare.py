"""`arlow compare`: the difference of two models on the same samples, with intervals and tests."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "compare",
        "compare two result folders sample by sample: difference, interval, p, effect",
        "arlow compare results/short results/long",
        "arlow compare results/short results/long --task easy-vqa",
    )
    parser.add_argument("first", type=Path, metavar="FIRST", help="result folder of `arlow evaluate`")
    parser.add_argument("second", type=Path, metavar="SECOND", help="result folder of the model to compare with it")
    parser.add_argument("--task", metavar="TASK", help="this task alone (default: all)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.evaluation.compare import compare_folders, format_comparisons

    print(format_comparisons(compare_folders(args.first, args.second, task=args.task), args.first, args.second))
