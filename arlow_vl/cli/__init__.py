"""The `arlow` command: a module per subcommand, with `add_parser(arlow)`; heavy imports wait until a command runs."""

import argparse
import errno
import importlib.util
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence

from arlow_vl.cli.exit_status import DATA, ENDED, INTERRUPTED, RESOURCES, USAGE
from arlow_vl.cli.output import flush_output, install_output
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
            print()  # after a progress line
        print_line(f"arlow: {sentence_of_stop(stop, getattr(args, 'again', ''))}", file=sys.stderr)
        return INTERRUPTED if isinstance(stop, KeyboardInterrupt) else ENDED


def parse(words: Sequence[str]) -> argparse.Namespace:
    try:
        return build_parser().parse_args(words)
    except SystemExit:
        flush_output()  # argparse ignores errors when it prints the help or the version
        raise


def one_line(message: str, words: Sequence[str]) -> str:
    """Returns the message without line breaks; those inside a name that was typed are shown as escapes."""
    for word in words:
        if (shown := visible(word)) != word:
            message = message.replace(word, shown)
    return re.sub(r"\s*\n\s*", " ", message.strip())


def sentence_of(error: Exception) -> str:
    """Returns the sentence for an error; where memory or a disk is full it says what to do."""
    if is_out_of_memory(error):
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"no memory is left ({first:.200}); a smaller --batch-size takes less, of commands that have one"
    if not isinstance(error, OSError) or error.errno not in FULL:
        return str(error)
    where = f" at {visible(str(error.filename))}" if error.filename else ""
    return f"the disk{where} is full ({error.strerror}); make room and run the command again: what is whole is kept"


def exit_status(error: Exception) -> int | None:
    """Returns the exit status for a user's error, None for a bug of ours (which keeps its traceback)."""
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
    """Hides torch's warnings about torchao's enums, and bitsandbytes' about a kernel that it does without.

    A filter, as torch sets the levels of its loggers when it loads.
    """
    for name in ("torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)


def open_closed_streams() -> None:
    """Opens standard streams that were closed: the next file that is opened would get their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # to the end of the process


def run() -> None:
    open_closed_streams()
    if importlib.util.find_spec("fcntl") is None:
        print_line("arlow: this is neither Linux nor macOS (no fcntl); on Windows, use WSL", file=sys.stderr)
        sys.exit(USAGE)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    end_by_sigterm()
    # OpenMP reads it when torch loads. By default its threads spin while they wait for each other, which on busy cores
    # keeps the thread they wait for from running: training beside three busy processes was 8 to 11 times slower. On
    # nearly idle cores a step takes 2 to 5% longer with it: 389 and 369 ms against 380 and 350, measured in turn.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    install_output()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers shows them for a second of loading
    quiet_warnings()
    sys.exit(main())
