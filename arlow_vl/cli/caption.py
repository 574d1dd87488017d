"""`arlow caption`: write what images show, or answer a question about them."""

import argparse
import sys
from pathlib import Path

from arlow_vl.cli.parser import Parser, positive_int, some_text
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "caption",
        "caption images, or answer a question about them",
        "arlow caption --model runs/first-light/vision/hf photo.jpg drawing.png",
        'arlow caption --model runs/first-light/vision/hf --question "what color is the shape?" photo.jpg',
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--model", type=Path, required=True, help="model folder (hf/ of a vision run)")
    parser.add_argument("--question", type=some_text, help="ask this instead of captioning")
    parser.add_argument("--max-new-tokens", type=positive_int, default=32, help="longest caption (default: 32 tokens)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import torch

    from arlow_vl.cli import DATA
    from arlow_vl.data.prompts import about_image
    from arlow_vl.evaluation.generation import complete_prompts
    from arlow_vl.models.arlow.generation_arlow import select_images
    from arlow_vl.models.folders import load_vision_language_model
    from vision.decoding.image import ImageError
    from vision.decoding.sources import read_image

    images = {}
    for place, path in enumerate(args.images):  # before any weight is read
        try:
            images[place] = read_image(path)
        except ImageError as error:
            print_line(f"arlow: {error}", file=sys.stderr)
    if not images:
        return DATA
    model, processor = load_vision_language_model(args.model)
    prepared = dict(processor.image_processor(list(images.values()), return_tensors="pt"))
    completions = complete_prompts(
        model,
        processor.tokenizer,
        [about_image(args.question or None)] * len(images),
        lambda rows: select_images(prepared, torch.arange(len(images))[rows]),
        max_new_tokens=args.max_new_tokens,
    )
    for place, completion in zip(images, completions, strict=True):
        print_line(f"{args.images[place]}: {completion}")
    return 0 if len(images) == len(args.images) else DATA
