"""`arlow caption`: write what images show, or answer a question about them."""

import argparse
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("caption", help="caption images, or answer a question about them")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--model", type=Path, required=True, help="model folder (hf/ of a vision run)")
    parser.add_argument("--question", help="ask this instead of captioning")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="longest caption (default: 32 tokens)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import torch

    from arlow_vl.data.prompts import CAPTION_PROMPT, question_prompt
    from arlow_vl.evaluation.generation import complete_prompts
    from arlow_vl.models.arlow.generation_arlow import select_images
    from arlow_vl.models.folders import load_vision_language_model
    from vision.decoding.names import printable
    from vision.decoding.sources import read_image

    images = [read_image(path) for path in args.images]  # before any weight is read
    model, processor = load_vision_language_model(args.model)
    prompt = question_prompt(args.question) if args.question else CAPTION_PROMPT
    prepared = dict(processor.image_processor(images, return_tensors="pt"))
    completions = complete_prompts(
        model,
        processor.tokenizer,
        [prompt] * len(images),
        lambda rows: select_images(prepared, torch.arange(len(images))[rows]),
        max_new_tokens=args.max_new_tokens,
    )
    for path, completion in zip(args.images, completions, strict=True):
        print(f"{printable(path)}: {completion}")
