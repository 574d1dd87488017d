"""`arlow report`: a page of a run folder, or of a result folder with its scores and images."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_file
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "report",
        "write a page that shows a run, or the scores of predictions",
        "arlow report runs/first-light/vision",
        "arlow report results --output page.html --shards data/captions/test-known-000000.tar",
    )
    parser.add_argument("results", type=Path, metavar="FOLDER", help="run folder of `arlow fit`, or result folder")
    parser.add_argument("--output", type=output_file, help="page to write (default: FOLDER/report.html)")
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
    if (args.results / "config.yaml").is_file() and (
        args.results / "metrics.csv"
    ).is_file():  # as `arlow fit` left them
        from arlow_vl.training.report.page import write_run_report

        print_line(write_run_report(args.results, args.output))
        return
    shards = args.shards or read_json(args.results / "meta.json").get("shards")
    if not shards or not isinstance(shards, list):
        raise ValueError(f"{args.results / 'meta.json'} lists no shards; say where the images are with --shards")
    output = args.output or args.results / "report.html"
    print(format_table(write_report(args.results, output, image_of=images_in_shards(shards))))
    print()
    print_line(output)
