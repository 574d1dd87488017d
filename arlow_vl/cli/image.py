"""`arlow image`: shows an image as the readers see it."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arlow_vl.cli.parser import Parser

EXAMPLE = "arlow image check photo.jpg"


def add_parser(arlow: Parser) -> None:
    verbs = arlow.add_command("image", "check that an image can be read", EXAMPLE)
    check = verbs.add_command(
        "check", "print size and corner pixels after conversion to RGB", EXAMPLE, "arlow image check --json photo.jpg"
    )
    check.add_argument("image", type=Path, metavar="FILE", help="image file")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> None:
    from vision.decoding.sources import read_image

    with silent_libraries():
        image = read_image(args.image)
    right, bottom = image.width - 1, image.height - 1
    places = {"top left": (0, 0), "top right": (right, 0), "bottom left": (0, bottom), "bottom right": (right, bottom)}
    corners = {name: list(image.crop((x, y, x + 1, y + 1)).tobytes()) for name, (x, y) in places.items()}
    if args.json:
        print(json.dumps({"width": image.width, "height": image.height, "corners": [*corners.values()]}))
    else:
        print(f"{image.width:,} x {image.height:,} pixels")
        print("\n".join(f"{name}: {' '.join(map(str, corner))}" for name, corner in corners.items()))


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Silences libtiff, which writes lines of its own to standard error, so that an error is one line of ours."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
