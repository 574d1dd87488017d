"""`arlow evaluate`: caption test pictures, answer test questions, score both beside their controls."""

import argparse
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("evaluate", help="captions, answers and scores on the test sets, beside controls")
    parser.add_argument("--model", type=Path, required=True, help="model folder (hf/ of a vision run)")
    parser.add_argument("--text-model", type=Path, help="the text model it was built from, to compare their text")
    parser.add_argument("--data", type=Path, default=Path("data"), help="what `arlow data fetch` wrote (default: data)")
    parser.add_argument("--features", type=Path, default=Path("data/features"), help="cache of encoder features")
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions and scores")
    parser.add_argument("--questions", type=int, help="ask only this many test questions, spread evenly (default: all)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.evaluation.evaluate import evaluate
    from arlow_vl.evaluation.scores import format_table, score_results

    evaluate(args.model, args.data, args.output, args.features, text_model=args.text_model, questions=args.questions)
    print(format_table(score_results(args.output)))
