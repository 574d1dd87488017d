"""`arlow demo`: serves a page on which people show a model images, ask about them and see where it looked."""

import argparse
import threading
import webbrowser

from arlow_vl.cli.parser import Parser
from arlow_vl.cli.serve import add_server_options, open_server


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "demo",
        "try a model on a page in the browser: captions, questions, heat maps",
        "arlow demo runs/first-light/vision/hf --open",
        "arlow demo runs/first-light/vision/hf --host 0.0.0.0 --api-key SECRET-KEY --port 8080",
        description="Serve a page on which people show a model images, ask about them, and see where it looked for "
        "each word. It is `arlow serve` with a page at /.",
    )
    add_server_options(parser)
    parser.add_argument("--open", action="store_true", help="open the page in the browser once the server is ready")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.printing import print_line

    server, device = open_server(args, has_page=True)

    def announce() -> None:
        page = f"{server.url}/"
        print_line(f"the page of {args.name} is at {page} on {device}, end with Ctrl+C")
        if args.open:
            # Some browsers of a terminal return only when they are closed.
            threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()

    server.run(on_ready=announce)
