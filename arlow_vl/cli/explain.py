"""`arlow explain`: draws where the model looked while it wrote each word."""

import argparse
from pathlib import Path

from arlow_vl.cli.model_options import add_model_options
from arlow_vl.cli.parser import Parser, output_file, positive_int, some_text
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "explain",
        "draw where the model looked while it wrote each word",
        "arlow explain --model runs/first-light/vision/hf photo.jpg --out heat.png",
        'arlow explain --model runs/first-light/vision/hf --question "what shape is it?" --layer 5 photo.jpg',
    )
    parser.add_argument("image", metavar="IMAGE", help="image file")
    add_model_options(parser, model="model folder (hf/ of a vision run)")
    parser.add_argument(
        "--out",
        "--output",
        type=output_file,
        default=Path("explain.png"),
        metavar="FILE",
        help="PNG to write (default: explain.png)",
    )
    parser.add_argument(
        "--layer", type=int, metavar="N", help="cross-attention of this layer alone (default: the mean of all layers)"
    )
    parser.add_argument("--question", type=some_text, metavar="TEXT", help="question to ask instead of captioning")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=32, metavar="N", help="longest answer, in tokens (default: 32)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.models.folder_files import refuse_text_model
    from vision.decoding.sources import path_if_there, read_image
    from vision.whole_files import write_whole

    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {args.out}")
    original = read_image(path_if_there(args.image))
    refuse_text_model(args.model)

    from arlow_vl.data.prompts import about_image
    from arlow_vl.evaluation.explain import explain_image  # loads torch, which takes seconds
    from arlow_vl.evaluation.heat_maps import draw_explanation
    from arlow_vl.evaluation.numbers import format_number
    from arlow_vl.models.open_model import open_model

    args.out.parent.mkdir(parents=True, exist_ok=True)
    opened = open_model(args.model, device=args.device, precision=args.precision, needs_images=True)
    model, processor = opened.model, opened.processor
    openings = model.gate_openings()
    layers = list(openings) if args.layer is None else [args.layer]
    prompt = about_image(args.question or None)
    how = {"layers": layers, "max_new_tokens": args.max_new_tokens}
    words, views = explain_image(model, processor, original, prompt, **how)
    caption = " ".join(word.word for word in words)
    read = ", ".join(f"{layer} (gate {format_number(openings[layer][0], 2, is_signed=True)})" for layer in layers)
    sheet = draw_explanation(original, views, words, title=f"{caption}   (cross-attention of layer {read})")
    write_whole(args.out, lambda file: sheet.save(file, "PNG"))
    print_line(f"{args.out}: {caption}")
