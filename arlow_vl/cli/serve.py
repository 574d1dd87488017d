"""`arlow serve`: serves a model over an OpenAI-compatible HTTP interface."""

import argparse
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from arlow_vl.cli.model_options import add_device_options
from arlow_vl.cli.parser import Parser, positive_int, some_text

if TYPE_CHECKING:
    from arlow_vl.serving.server import Server

KEY_VARIABLE = "ARLOW_API_KEY"
LEAST_KEY = 8  # characters


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "serve",
        "serve a text or vision-language model over HTTP, OpenAI-compatible",
        "arlow serve runs/first-light/vision/hf --port 8000",
        "arlow serve runs/first-light/text/hf --host 0.0.0.0 --api-key SECRET-KEY --device cuda --precision bfloat16",
    )
    add_server_options(parser)
    parser.set_defaults(run=run)


def add_server_options(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL_DIR", help="folder of a text or vision-language model (hf/ of a run)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1, this machine)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port to listen on; 0: a free one (default: 8000)"
    )
    parser.add_argument(
        "--name", type=some_text, default="arlow", metavar="NAME", help="the model's name for clients (default: arlow)"
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"key that clients must send; better in {KEY_VARIABLE}, which no process list shows",
    )
    add_device_options(parser)
    parser.add_argument(
        "--max-batch", type=positive_int, default=16, metavar="N", help="answers written at once (default: 16)"
    )
    parser.add_argument(
        "--max-waiting", type=positive_int, default=64, metavar="N", help="requests that may wait (default: 64)"
    )
    parser.add_argument(
        "--max-tokens", type=positive_int, default=1024, metavar="N", help="longest answer, in tokens (default: 1024)"
    )
    parser.add_argument(
        "--max-images", type=positive_int, default=8, metavar="N", help="images per request (default: 8)"
    )
    parser.add_argument(
        "--max-body-mb", type=positive_int, default=32, metavar="N", help="largest request, in MiB (default: 32)"
    )
    parser.add_argument(
        "--request-seconds", type=positive_int, default=300, metavar="N", help="time limit of a request (default: 300)"
    )
    parser.add_argument(
        "--drain-seconds",
        type=positive_int,
        default=30,
        metavar="N",
        help="time for running answers to finish after SIGTERM (default: 30)",
    )


def run(args: argparse.Namespace) -> None:
    from arlow_vl.printing import print_line

    server, device = open_server(args)
    server.run(on_ready=lambda: print_line(f"serving {args.name} at {server.url}/v1 on {device}, end with Ctrl+C"))


def open_server(args: argparse.Namespace, *, has_page: bool = False) -> tuple["Server", str]:
    """Returns a server that is ready to run, and its model's device. Raises ValueError and CheckpointError."""
    if importlib.util.find_spec("uvicorn") is None:
        raise ValueError("serving needs uvicorn; pip install 'arlow-vl[serve]'")
    from arlow_vl.models.folder_files import refuse_missing_files
    from arlow_vl.serving.listening import listen

    # Before anything is imported that takes seconds, and before any weight is read.
    key = checked_key(args.api_key or os.environ.get(KEY_VARIABLE) or None, args.host)
    listener = listen(args.host, args.port)
    refuse_missing_files(args.model)
    from arlow_vl.serving.api import Api
    from arlow_vl.serving.assistant import Assistant
    from arlow_vl.serving.engine import Engine
    from arlow_vl.serving.limits import ServerLimits
    from arlow_vl.serving.server import Server

    body = args.max_body_mb * 2**20
    limits = ServerLimits(
        max_body_bytes=body,
        max_held_bytes=4 * body,
        max_images=args.max_images,
        max_new_tokens=args.max_tokens,
        request_seconds=args.request_seconds,
    )
    assistant = Assistant.open(args.model, device=args.device, precision=args.precision)
    engine = Engine(assistant, max_batch=args.max_batch, max_waiting=args.max_waiting)
    api = Api(assistant, engine, name=args.name, api_key=key, limits=limits, has_page=has_page)
    server = Server(api, engine, listener, limits, drain_seconds=args.drain_seconds)
    return server, str(assistant.model.device)


def checked_key(key: str | None, host: str) -> str | None:
    """Returns the API key, or None if none is needed. Raises ValueError."""
    from arlow_vl.printing import visible
    from arlow_vl.serving.listening import is_loopback

    if key is None and not is_loopback(host):
        raise ValueError(
            f"--host {visible(host)} is reached from other machines, so clients must send a key: set {KEY_VARIABLE} or "
            "--api-key, or leave --host out"
        )
    if key is not None and (len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError(f"the API key must be at least {LEAST_KEY} ASCII letters, digits or signs without a space")
    return key
