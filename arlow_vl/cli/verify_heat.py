"""`arlow verify-heat`: tests if heat maps of `arlow explain` point at what the words were written from."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_file, positive_int, some_text


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "verify-heat",
        "hide what a word attended to and measure how far its probability falls",
        "arlow verify-heat --model runs/first-light/vision/hf photos/*.jpg",
        'arlow verify-heat --model runs/first-light/vision/hf --question "what shape is it?" --layer 5 photos/*.jpg',
        description="Hide the image tokens that each word attended to most, as many at random, and those attended to "
        "least, and measure how far the word's log-probability falls, by layer. Heat maps mean something where the "
        "most attended matter most.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, at least two")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder (hf/ of a vision run)")
    parser.add_argument("--layer", type=int, metavar="N", help="heat of this layer alone (default: of each layer)")
    parser.add_argument("--question", type=some_text, metavar="TEXT", help="question to ask instead of captioning")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=32, metavar="N", help="longest answer, in tokens (default: 32)"
    )
    parser.add_argument(
        "--output",
        type=output_file,
        metavar="FILE",
        help="write the figures as JSON; `arlow report RESULTS` shows RESULTS/heat.json",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.models.folder_files import refuse_text_model
    from vision.decoding.sources import path_if_there, read_image

    if len(args.images) < 2:
        raise ValueError("an interval over images needs two images at least, got 1; give more")
    originals = [read_image(path_if_there(path)) for path in args.images]  # before any weight is read
    refuse_text_model(args.model)

    from arlow_vl.data.prompts import about_image
    from arlow_vl.evaluation.faithfulness import AskedImage, format_heat_tests, measure_heat, write_heat_tests
    from arlow_vl.models.folders import load_vision_language_model  # loads torch, which takes seconds

    model, processor = load_vision_language_model(args.model)
    layers = list(model.gate_openings()) if args.layer is None else [args.layer]
    prompt = about_image(args.question or None)
    asked = (AskedImage(original, prompt, args.max_new_tokens) for original in originals)
    tests = measure_heat(model, processor, asked, layers=layers, total=len(originals))
    print(format_heat_tests(tests))
    if args.output:
        write_heat_tests(args.output, tests)
