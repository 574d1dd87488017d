"""The `arlow` command: a module a subcommand, with `add_parser(subparsers)`; heavy imports wait inside its verbs."""

import argparse
import errno
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

from vision.decoding.names import escaped

SUBCOMMANDS = """
    data tokenizer fit caption explain evaluate report image checkpoint serve verify_frozen doctor
""".split()
USAGE, DATA, RESOURCES, INTERRUPTED = 2, 3, 6, 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="arlow", description="Train, evaluate and use Arlow language and vision-language models."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in SUBCOMMANDS:
        importlib.import_module(f"arlow_vl.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; a user's error becomes one line on standard error."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, OSError, RuntimeError) as error:
        status = exit_status(error)
        if status is None or args.debug:
            raise
        print(f"arlow: {escaped(' '.join(str(error).split()))}", file=sys.stderr)
        return status
    except KeyboardInterrupt:
        print("arlow: interrupted", file=sys.stderr)
        return INTERRUPTED


def exit_status(error: Exception) -> int | None:
    """The exit status for a user's error, None for a fault of ours (which keeps its traceback)."""
    from vision.decoding.image import ImageError

    if hasattr(error, "exit_code"):
        return error.exit_code
    if isinstance(error, ImageError):
        return DATA
    if isinstance(error, OSError):
        return (
            RESOURCES if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOMEM) else USAGE
        )
    return USAGE if isinstance(error, ValueError) else None


def run() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers', for a second of loading
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torch's warnings about torchao's enums
    sys.exit(main())
