"""`arlow generate`: continues a text, or answers it."""

import argparse

from arlow_vl.cli.model_options import add_decoding_options, add_model_options, decoding_of, open_assistant
from arlow_vl.cli.parser import Parser, any_text
from arlow_vl.printing import print_piece


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "generate",
        "continue a text, or answer it",
        'arlow generate "The first" --model runs/first-light/text/hf',
        'arlow generate "Who are you?" --chat --model runs/smollm2 --temperature 0.8 --top-p 0.9 --seed 1',
    )
    parser.add_argument("text", type=any_text, metavar="TEXT", help="text to continue, in quotes")
    add_model_options(parser, model="folder of a text or vision-language model (hf/ of a run)")
    parser.add_argument(
        "--chat", action="store_true", help="answer the text as a user's turn, by the model's chat template"
    )
    add_decoding_options(parser, max_new_tokens=64)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.models.folder_files import refuse_missing_files

    decoding = decoding_of(args)
    if args.chat and not args.text.strip():
        raise ValueError("a turn of a chat needs some text")
    refuse_missing_files(args.model)

    from arlow_vl.serving.writing import stream  # loads torch, which takes seconds

    assistant = open_assistant(args)
    if args.chat:
        prompt = assistant.chat([{"role": "user", "content": args.text}])
    else:
        prompt = assistant.text(args.text)
    try:
        for piece in stream(assistant, prompt, decoding):
            print_piece(piece)
    finally:
        print()
