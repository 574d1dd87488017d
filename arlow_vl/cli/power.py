"""`arlow power`: computes how many images a difference between two models needs."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "power",
        "say how many images a difference needs to be seen, from measured results",
        "arlow power results/short results/long --difference 0.02",
        "arlow power results/short --difference 0.02 --power 0.9",
        description="Say how many images a difference needs to be seen, from measured results. Two folders tell the "
        "spread of their difference; with one, the other model's errors are taken to have nothing to do with its own, "
        "which asks for more images than two models on the same images need.",
    )
    parser.add_argument("first", type=Path, metavar="FIRST", help="result folder of `arlow evaluate`")
    parser.add_argument("second", type=Path, metavar="SECOND", nargs="?", help="result folder of another model")
    parser.add_argument(
        "--difference",
        type=float,
        required=True,
        metavar="D",
        help="difference to be seen, in the metric's scale: 0.02 is 2%% of accuracy",
    )
    parser.add_argument("--power", type=float, default=0.8, metavar="P", help="probability of seeing it (default: 0.8)")
    parser.add_argument("--task", metavar="TASK", help="this task alone (default: all)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.evaluation.compare import format_power, power_of_folders

    settings = {"difference": args.difference, "power": args.power}
    print(format_power(power_of_folders(args.first, args.second, task=args.task, **settings), **settings))
