"""Signs of life of a process that reads data: within one item, bytes that it waits for are still arriving."""

from collections.abc import Callable
from contextvars import ContextVar

BEAT: ContextVar[Callable[[], None]] = ContextVar("beat", default=lambda: None)
"""Called when bytes arrive; does nothing except in a process that is watched for hanging."""


def beat() -> None:
    BEAT.get()()
