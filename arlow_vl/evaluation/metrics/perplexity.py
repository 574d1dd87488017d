"""Perplexity and bits per byte, and the sliding windows that score texts longer than a model's context.

With a window of 6 tokens and a stride of 3, a text of 10 tokens is scored in three passes of the model ("-": context
only, "s": scored; the first token has no context and is not scored, so a start token usually stands there):

    tokens   0 1 2 3 4 5 6 7 8 9
    pass 1   - s s s s s
    pass 2         - - - s s s
    pass 3           - - - - - s        starts at 4, so that the last window is full as well
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.metrics.sums import Values, ratio


@dataclass(frozen=True)
class Window:
    """A window over tokens `begin` to `end` (excluded), in which those from `score_from` on are scored."""

    begin: int
    end: int
    score_from: int


def windows(tokens: int, *, window: int, stride: int) -> Iterator[Window]:
    """Yields windows that score each token but the first exactly once, with as much context as they allow.

    The longest stride is the fastest and gives the least context; a stride of 1 gives every token a full window.

    Raises:
        ValueError: the window is below two tokens, or the stride is not from 1 to one less than the window.
    """
    if window < 2:
        raise ValueError(f"a window needs two tokens at least, one to score and one before it, got {window}")
    if not 1 <= stride < window:
        raise ValueError(f"the stride must be from 1 to {window - 1}, one less than the window, got {stride}")
    scored = 1
    while scored < tokens:
        end = min(tokens, window if scored == 1 else scored + stride)
        yield Window(max(0, end - window), end, scored)
        scored = end


def perplexity(sums: Float[np.ndarray, "*batch 3"]) -> Values:
    """Computes the perplexity from sums of (log-probability in nats, scored tokens, UTF-8 bytes)."""
    return np.exp(-ratio(sums[..., 0], sums[..., 1]))


def bits_per_byte(sums: Float[np.ndarray, "*batch 3"]) -> Values:
    """Computes bits per byte from the same sums; it compares models with different tokenizers."""
    return -ratio(sums[..., 0], sums[..., 2]) / math.log(2)
