"""`arlow import`: turns a pretrained Llama-shaped model into an Arlow text model."""

import argparse
import sys
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_folder, positive_int
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "import",
        "turn a pretrained Llama, SmolLM2, TinyLlama or Mistral into a text model",
        "arlow import SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2 --cross-attention-interval 5",
        "arlow import downloads/TinyLlama-1.1B-Chat-v1.0 --out tinyllama",
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder of config.json, safetensors and tokenizer, or GGUF file"
    )
    parser.add_argument(
        "--out",
        "--output",
        type=output_folder,
        required=True,
        metavar="DIR",
        help="folder to write, which must be new or empty",
    )
    parser.add_argument(
        "--cross-attention-interval",
        type=positive_int,
        metavar="N",
        help="the vision stage puts a cross-attention block before every N-th layer (default: 4)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.data.prompts import stop_token_ids
    from arlow_vl.models.convert.importing import import_model
    from arlow_vl.models.folders import load_tokenizer

    lines = import_model(args.source, args.out, cross_attention_interval=args.cross_attention_interval)
    for line in lines:
        print_line(line)
    try:
        stop_token_ids(load_tokenizer(args.out))
    except ValueError as error:
        print_line(f"training on images will refuse the chat template of {args.out}: {error}", file=sys.stderr)
