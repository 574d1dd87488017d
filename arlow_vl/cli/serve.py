"""`arlow serve`: a text model behind an OpenAI-compatible HTTP interface, by `transformers serve`."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "serve",
        "serve a text model over HTTP, OpenAI-compatible",
        "arlow serve runs/first-light/text/hf --port 8000 --device cpu",
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="a text model with its tokenizer")
    parser.add_argument(
        "options",
        nargs=argparse.REMAINDER,
        help="options of `transformers serve`: --port 8000 --device cpu --continuous-batching ...",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import transformers
    from transformers.utils.import_utils import is_serve_available

    from arlow_vl.models.auto import ArlowForCausalLM
    from arlow_vl.models.folders import check_folder

    if not is_serve_available():
        raise ValueError("serving needs fastapi, uvicorn and openai; pip install 'arlow-vl[serve]'")
    architectures = check_folder(args.model, "arlow").architectures
    if architectures != [ArlowForCausalLM.__name__]:
        raise ValueError(f"{args.model} holds {architectures}; only text models (ArlowForCausalLM) can be served")
    # Its server looks a model's class up by name among transformers' own, not in the Auto classes' registry.
    transformers.ArlowForCausalLM = ArlowForCausalLM  # pyrefly: ignore[missing-attribute]

    from transformers.cli.transformers import app

    app(["serve", str(args.model.resolve()), *args.options], prog_name="arlow", standalone_mode=False)
