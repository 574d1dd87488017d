"""`arlow vqa`: answers a question about an image, or about several together."""

import argparse
import os

from arlow_vl.cli.model_options import add_decoding_options, add_model_options, decoding_of, open_assistant
from arlow_vl.cli.parser import Parser, some_text
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "vqa",
        "answer a question about an image, or about several together",
        'arlow vqa photo.jpg "what color is the shape?" --model runs/first-light/vision/hf',
        'arlow vqa left.jpg right.jpg "are they the same?" --model runs/first-light/vision/hf --choices yes no',
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files; the question is about all of them")
    parser.add_argument("question", type=some_text, metavar="QUESTION", help="question, in quotes, after the images")
    add_model_options(parser, model="model folder (hf/ of a vision run)")
    parser.add_argument(
        "--choices", nargs="+", type=some_text, metavar="ANSWER", help="print how likely each of these answers is"
    )
    add_decoding_options(parser, max_new_tokens=32)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.models.folder_files import refuse_text_model
    from arlow_vl.serving.decoding import Decoding, check_choices
    from vision.decoding.sources import path_if_there, read_image

    decoding = decoding_of(args)
    if os.path.isfile(args.question):
        raise ValueError(f"the question comes last, and {args.question} is a file; put the question behind the images")
    if args.choices and decoding != Decoding(max_new_tokens=args.default_max_new_tokens):
        raise ValueError("--choices compares given answers and writes none; leave the options of decoding out")
    if args.choices:
        check_choices(args.choices)
    for path in args.images:  # before any weight is read
        read_image(path_if_there(path))
    refuse_text_model(args.model)

    from arlow_vl.data.prompts import about_image
    from arlow_vl.serving.captioning import one_line  # loads torch, which takes seconds
    from arlow_vl.serving.writing import choose, write

    assistant = open_assistant(args, needs_images=True)
    images = [assistant.image(path) for path in args.images]
    messages = about_image(args.question, images=len(images))
    if not args.choices:
        (written,) = write(assistant, [assistant.chat(messages, images)], decoding)
        print_line(one_line(written))
        return
    shares = choose(assistant, messages, images, args.choices)
    for share, answer in sorted(zip(shares, args.choices, strict=True), key=lambda pair: -pair[0]):
        print_line(f"{share:7.2%}  {answer}")
