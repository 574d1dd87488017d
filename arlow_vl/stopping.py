"""A command that is stopped from outside, by Ctrl-C or SIGTERM, says so, and how far it came."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

AGAIN = "the same command goes on"


class Ended(SystemExit):
    """SIGTERM, as an exception, so that what is open is closed. Ctrl-C is Python's KeyboardInterrupt."""


STOPS = (KeyboardInterrupt, Ended)


def end_by_sigterm() -> None:
    """From here on the signal raises `Ended`, unless whoever started this process has it ignored."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: Any) -> None:
    raise Ended(128 + number)


@contextlib.contextmanager
def told_when_stopped(held: Callable[[], str]) -> Iterator[None]:
    """What is stopped within says what `held` gives then: how far it came, and what to do."""
    try:
        yield
    except STOPS as stop:
        stop.add_note(held())
        raise


def sentence_of_stop(stop: BaseException, advice: str = "") -> str:
    """`interrupted`, or `ended by SIGTERM; out.jsonl holds 40 images ..., and the same command goes on`.

    `advice` is said where nothing on the way has said how far it came.
    """
    notes = getattr(stop, "__notes__", None) or ([advice] if advice else [])
    return "; ".join(["interrupted" if isinstance(stop, KeyboardInterrupt) else "ended by SIGTERM", *notes])
