"""The `arlow` command: a module a subcommand, with `add_parser(arlow)`; heavy imports wait inside its verbs."""

import argparse
import errno
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence

from arlow_vl.cli.output import flush_output, tell_of_output
from arlow_vl.cli.parser import Parser
from arlow_vl.errors import is_out_of_memory
from arlow_vl.printing import print_line, visible
from arlow_vl.stopping import STOPS, end_by_sigterm, sentence_of_stop
from arlow_vl.versions import version_of

SUBCOMMANDS = """
    data tokenizer import_ fit caption vqa chat demo generate explain evaluate reproduce report compare power
    image checkpoint export serve verify_frozen verify_heat doctor completion
""".split()
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
USAGE, DATA, RESOURCES, INTERRUPTED, ENDED = 2, 3, 6, 130, 143


def build_parser() -> Parser:
    parser = Parser(
        prog="arlow",
        description="Train, evaluate and use Arlow language and vision-language models.",
        examples=[
            "arlow fit --config experiments/first_light/text.yaml",
            "arlow caption --model runs/first-light/vision/hf photo.jpg",
        ],
    )
    parser.add_argument("--version", action="version", version=f"arlow {version_of('arlow-vl')}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    for name in SUBCOMMANDS:
        importlib.import_module(f"arlow_vl.cli.{name}").add_parser(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; a user's error becomes one line on standard error."""
    words, args = sys.argv[1:] if argv is None else list(argv), None
    try:
        args = parse(words)
        status = args.run(args) or 0
        flush_output()
        return status
    except (ValueError, OSError, RuntimeError) as error:
        status = exit_status(error)
        if status is None or "--debug" in words:
            raise
        print_line(f"arlow: {one_line(sentence_of(error), words)}", file=sys.stderr)
        return status
    except STOPS as stop:
        if sys.stdout.isatty():
            print()  # behind a line of progress
        print_line(f"arlow: {sentence_of_stop(stop, getattr(args, 'again', ''))}", file=sys.stderr)
        return INTERRUPTED if isinstance(stop, KeyboardInterrupt) else ENDED


def parse(words: Sequence[str]) -> argparse.Namespace:
    try:
        return build_parser().parse_args(words)
    except SystemExit:
        flush_output()  # of the help and the version argparse tells no fault
        raise


def one_line(message: str, words: Sequence[str]) -> str:
    """The message without line breaks; those inside a name that was typed are shown as escapes."""
    for word in words:
        if (shown := visible(word)) != word:
            message = message.replace(word, shown)
    return re.sub(r"\s*\n\s*", " ", message.strip())


def sentence_of(error: Exception) -> str:
    """What a full disk says of itself is a number and, of some calls, no name: people are told what to do."""
    if is_out_of_memory(error):
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"no memory is left ({first:.200}); a smaller --batch-size takes less, of commands that have one"
    if not isinstance(error, OSError) or error.errno not in FULL:
        return str(error)
    where = f" at {visible(str(error.filename))}" if error.filename else ""
    return f"the disk{where} is full ({error.strerror}); make room and run the command again: what is whole is kept"


def exit_status(error: Exception) -> int | None:
    """The exit status for a user's error, None for a fault of ours (which keeps its traceback)."""
    from vision.decoding.image import ImageError

    if hasattr(error, "exit_code"):
        return error.exit_code
    if isinstance(error, ImageError):
        return DATA
    if is_out_of_memory(error):
        return RESOURCES
    if isinstance(error, OSError):
        return RESOURCES if error.errno in (*FULL, errno.EROFS, errno.EACCES, errno.ENOMEM) else USAGE
    return USAGE if isinstance(error, ValueError) else None


def quiet_warnings() -> None:
    """Without torch's warnings about torchao's enums, and bitsandbytes' about a kernel that it does without.

    A filter: torch sets the levels of its loggers when it loads.
    """
    for name in ("torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)


def open_closed_streams() -> None:
    """Python has None for a standard stream that was closed, and the next file that is opened would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # to the end of the process


def run() -> None:
    open_closed_streams()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    end_by_sigterm()
    # OpenMP reads it when torch loads. Else its threads spin while they wait for each other, which on cores that others
    # use keeps the one that is waited for from running: training beside three busy processes was 8 to 11 times slower.
    # On cores that were nearly idle a step took 2 to 5% longer so: 389 and 369 ms against 380 and 350, in turn.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    tell_of_output()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers', for a second of loading
    quiet_warnings()
    sys.exit(main())
