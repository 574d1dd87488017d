"""`arlow evaluate`: caption test images and answer test questions, model and controls; `arlow report` scores."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_folder, positive_int
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "evaluate",
        "write captions and answers on the test sets, beside controls",
        "arlow evaluate --model runs/first-light/vision/hf --output results",
        "arlow evaluate --model runs/first-light/vision/hf --data data --questions 200 --output results",
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder (hf/ of a vision run)")
    parser.add_argument("--text-model", type=Path, help="the text model it was built from, to compare their text")
    parser.add_argument("--data", type=Path, default=Path("data"), help="what `arlow data fetch` wrote (default: data)")
    parser.add_argument(
        "--features", type=output_folder, default=Path("data/features"), help="cache of encoder features"
    )
    parser.add_argument(
        "--features-dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="as what they are kept, cache_dtype of the run's recipe (default: float16)",
    )
    parser.add_argument("--output", type=output_folder, required=True, help="folder for predictions")
    parser.add_argument(
        "--questions", type=positive_int, help="ask only this many test questions, spread evenly (default: all)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.evaluation.evaluate import evaluate

    evaluate(
        args.model,
        args.data,
        args.output,
        args.features,
        features_dtype=args.features_dtype,
        text_model=args.text_model,
        questions=args.questions,
    )
    print_line(f"`arlow report {args.output}` scores and shows them")
