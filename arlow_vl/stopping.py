"""Messages of a command that Ctrl-C or SIGTERM ends: what ended it, and how far it got."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

AGAIN = "the same command continues"


class Ended(SystemExit):
    """Raised at SIGTERM, so that open files are closed. Ctrl-C raises Python's KeyboardInterrupt."""


STOPS = (KeyboardInterrupt, Ended)


def end_by_sigterm() -> None:
    """Makes SIGTERM raise `Ended` from now on, unless the parent process had it ignored."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: Any) -> None:
    raise Ended(128 + number)


@contextlib.contextmanager
def note_when_stopped(held: Callable[[], str]) -> Iterator[None]:
    """Adds `held()`, how far the work got and what to do, as a note to a stop inside the block."""
    try:
        yield
    except STOPS as stop:
        stop.add_note(held())
        raise


def sentence_of_stop(stop: BaseException, advice: str = "") -> str:
    """Returns `interrupted`, or `ended by SIGTERM; out.jsonl holds 40 images ..., and the same command continues`.

    `advice` is added if the stop has no note on how far the work got.
    """
    notes = getattr(stop, "__notes__", None) or ([advice] if advice else [])
    return "; ".join(["interrupted" if isinstance(stop, KeyboardInterrupt) else "ended by SIGTERM", *notes])
