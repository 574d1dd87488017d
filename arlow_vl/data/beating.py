"""How a process that reads data says, in the middle of an item, that it goes on: bytes arrive that it waits for."""

from collections.abc import Callable
from contextvars import ContextVar

BEAT: ContextVar[Callable[[], None]] = ContextVar("beat", default=lambda: None)
"""To be called when something has happened; set where somebody watches."""


def beat() -> None:
    BEAT.get()()
