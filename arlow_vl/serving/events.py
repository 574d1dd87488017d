"""Events that the engine delivers while it answers."""

from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
Fault = Literal["late", "stopped", "model", "request"]


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a token that was written, before any decoding option."""

    token_id: int
    logprob: float
    """In nats."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this position, with their log-probabilities."""


@dataclass(frozen=True)
class Piece:
    """The next text of an answer. Text that was held back may bring several tokens; some tokens bring no text."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    """The tokens written since the last piece, if log-probabilities or ids were asked for."""


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    """Including the token that ended it."""


@dataclass(frozen=True)
class Done:
    """The result of work other than an answer."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """The end of a request that failed: by a time limit, a shutdown, the model or the request itself."""

    fault: Fault
    message: str


Event = Piece | Finished | Done | Failed
