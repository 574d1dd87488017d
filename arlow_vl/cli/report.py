"""`arlow report`: writes a page about a run folder, or about a result folder with its scores and images."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_file
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "report",
        "write a page that shows a run, or the results of an evaluation",
        "arlow report runs/first-light/vision",
        "arlow report results --heat 32",
        description="Write one page, report.html, that shows a run, or the results of an evaluation: scores beside "
        "their controls, samples with what everybody said of them, heat maps, learning curves, and how to do it again.",
    )
    parser.add_argument("results", type=Path, metavar="FOLDER", help="run folder of `arlow fit`, or result folder")
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help="page to write (default: FOLDER/report.html)"
    )
    results = parser.add_argument_group("for a result folder")
    results.add_argument(
        "--model", type=Path, metavar="DIR", help="where the model lies now, for heat maps (default: where it lay)"
    )
    results.add_argument(
        "--heat",
        type=number_of_images,
        metavar="N",
        help="test heat maps on N images (kept in heat.json); 0 leaves heat out (default: draw a few, test none)",
    )
    parser.set_defaults(run=run)


def number_of_images(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 1:
        raise argparse.ArgumentTypeError(f"must be 0, or 2 at least for an interval over images, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> None:
    if not args.results.is_dir():
        raise ValueError(f"{args.results} is no folder; `arlow evaluate --output FOLDER` writes one with results")
    if (args.results / "config.yaml").is_file() and (
        args.results / "metrics.csv"
    ).is_file():  # as `arlow fit` left them
        from arlow_vl.training.report.page import write_run_report

        print_line(write_run_report(args.results, args.output))
        return
    from arlow_vl.evaluation.tasks.results import task_folders

    task_folders(args.results)  # refuses before the page's modules load torch, which takes seconds

    from arlow_vl.evaluation.report.page import NAME, write_report

    output = args.output or args.results / NAME
    write_report(args.results, output, model=args.model, tested=args.heat)
    print_line(output)
