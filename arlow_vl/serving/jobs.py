"""Requests to the engine: answers, and other work that is done in one go."""

import time
from collections.abc import Callable
from typing import Any

from arlow_vl.serving.assistant import Prompt
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.encoding import ImageEncoder
from arlow_vl.serving.events import Event, TokenLogprob
from arlow_vl.serving.next_token import NextToken
from arlow_vl.serving.text_stream import TextStream


class Job:
    """A request that waits in the engine or is being answered."""

    def __init__(self, deliver: Callable[[Event], None], seconds: float) -> None:
        self.deliver, self.deadline = deliver, time.monotonic() + seconds
        self.is_cancelled = False

    def cancel(self) -> None:
        """Frees the slot at the next token; no more events are delivered. Any thread may call it."""
        self.is_cancelled = True


class Answer(Job):
    """A requested answer and its state, which only the engine's thread changes."""

    def __init__(self, prompt: Prompt, decoding: Decoding, deliver: Callable[[Event], None], seconds: float) -> None:
        super().__init__(deliver, seconds)
        self.prompt, self.decoding = prompt, decoding
        self.top_logprobs: int | None = None
        self.last_token = -1
        self.written = 0
        self.stream: TextStream
        self.next_token: NextToken
        self.unreported: list[TokenLogprob] = []


class Work(Job):
    """Other work for the model, done in one go between two tokens of the answers."""

    def __init__(self, do: Callable[[ImageEncoder], Any], deliver: Callable[[Event], None], seconds: float) -> None:
        super().__init__(deliver, seconds)
        self.do = do
