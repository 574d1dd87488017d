"""`arlow report`: score a result folder, print the table, and write the page with the images."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_file
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "report",
        "score predictions and write a page that shows them",
        "arlow report results",
        "arlow report results --output page.html --shards data/captions/test-known-000000.tar",
    )
    parser.add_argument("results", type=Path, metavar="RESULT_DIR", help="result folder of `arlow evaluate`")
    parser.add_argument("--output", type=output_file, help="page to write (default: RESULT_DIR/report.html)")
    parser.add_argument(
        "--shards", type=Path, nargs="+", metavar="SHARD", help="where the images are (default: as meta.json says)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.evaluation.report.page import images_in_shards, write_report
    from arlow_vl.evaluation.results import read_json
    from arlow_vl.evaluation.scores import format_table

    if not args.results.is_dir():
        raise ValueError(f"{args.results} is no folder; `arlow evaluate --output FOLDER` writes one with results")
    shards = args.shards or read_json(args.results / "meta.json").get("shards")
    if not shards or not isinstance(shards, list):
        raise ValueError(f"{args.results / 'meta.json'} lists no shards; say where the images are with --shards")
    output = args.output or args.results / "report.html"
    print(format_table(write_report(args.results, output, image_of=images_in_shards(shards))))
    print()
    print_line(output)
