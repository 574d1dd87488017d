"""Options that all commands that ask a model share: of the model and of decoding."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from arlow_vl.cli.parser import Parser, any_text, positive_int

if TYPE_CHECKING:
    from arlow_vl.serving.assistant import Assistant
    from arlow_vl.serving.decoding import Decoding

OPTIONS = {
    "num_beams": "--beams",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")
    },
}
"""The command-line options of the fields of `Decoding`, for its error messages."""


def add_model_options(parser: Parser, *, model: str) -> None:
    """Adds the options of the model; `model` is the help of --model."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help=model)
    add_device_options(parser)


def add_device_options(parser: Parser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 or mps (default: the first accelerator, else the CPU)"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the weights (default: as they were saved)",
    )


def add_decoding_options(parser: Parser, *, max_new_tokens: int) -> None:
    group = parser.add_argument_group(
        "decoding", "The likeliest token is taken each time, unless an option says otherwise."
    )
    group.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=max_new_tokens,
        metavar="N",
        help=f"longest answer, in tokens (default: {max_new_tokens})",
    )
    parser.set_defaults(default_max_new_tokens=max_new_tokens)
    group.add_argument(
        "--beams", type=positive_int, default=1, metavar="N", help="number of beams; above 1: beam search (default: 1)"
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="above 0, up to 2: sample tokens, the more freely the higher (default: 0)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens that together have probability P (default: 1, all)",
    )
    group.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens (default: 0, all)"
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1: tokens that were read or written become less likely (default: 1)",
    )
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="seed of the sampling, for the same answer again (default: a new one each time)",
    )
    group.add_argument(
        "--stop",
        type=any_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; may be repeated",
    )


def decoding_of(args: argparse.Namespace) -> "Decoding":
    """Returns the decoding options. Raises ValueError, with the names of the command line."""
    from arlow_vl.serving.decoding import Decoding

    try:
        return Decoding(
            max_new_tokens=args.max_new_tokens,
            num_beams=args.beams,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            repetition_penalty=args.repetition_penalty,
            seed=args.seed,
            stop=tuple(args.stop),
        )
    except ValueError as error:
        sentence = str(error)
        for field, option in OPTIONS.items():
            sentence = sentence.replace(field, option)
        raise ValueError(sentence) from None


def open_assistant(args: argparse.Namespace, *, needs_images: bool = False) -> "Assistant":
    """Opens the model that the options name. Raises CheckpointError."""
    from arlow_vl.models.open_model import open_model
    from arlow_vl.serving.assistant import Assistant

    opened = open_model(args.model, device=args.device, precision=args.precision, needs_images=needs_images)
    return Assistant(opened)
