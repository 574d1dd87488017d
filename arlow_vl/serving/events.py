"""What an answer says of itself while it is written."""

from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
Fault = Literal["late", "stopped", "model", "request"]


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found the token that it wrote, before any decoding option."""

    token_id: int
    logprob: float
    """Nats."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place, with theirs."""


@dataclass(frozen=True)
class Piece:
    """More text. Held-back text may bring several tokens at once, and some tokens bring no text."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    """Of the tokens written since the last piece, where they were asked for."""


@dataclass(frozen=True)
class Finished:
    """The whole answer has been given."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    """With the token that ended it."""


@dataclass(frozen=True)
class Done:
    """Work other than an answer has been done, and this came of it."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """No more comes, because of a limit, of the server's end, of the model or of what was asked."""

    fault: Fault
    message: str


Event = Piece | Finished | Done | Failed
