"""Perplexity and bits per byte of texts longer than a model's context: which window scores which token.

With a window of 6 tokens and a stride of 3, a text of 10 tokens is scored in three runs of the model ("-" is context
alone, "s" is scored; the first token has nothing before it and is scored by no run, unless a start token stands there):

    tokens   0 1 2 3 4 5 6 7 8 9
    run 1    - s s s s s
    run 2          - - - s s s
    run 3            - - - - - s        starts at 4, so that the last window is full as well
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.metrics.sums import Values, ratio


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` are read, those from `score_from` on are scored."""

    begin: int
    end: int
    score_from: int


def windows(tokens: int, *, window: int, stride: int) -> Iterator[Window]:
    """Windows that score each token but the first exactly once, with as much context as the window leaves.

    A stride as long as the window is fastest and gives the least context; a stride of 1 gives every token all of it.

    Raises:
        ValueError: a window below two tokens, or a stride that is not from 1 to one less than the window.
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
    """From sums of (log-probability in nats, scored tokens, UTF-8 bytes)."""
    return np.exp(-ratio(sums[..., 0], sums[..., 1]))


def bits_per_byte(sums: Float[np.ndarray, "*batch 3"]) -> Values:
    """The same of any tokenizer, so that models with different ones can be compared."""
    return -ratio(sums[..., 0], sums[..., 2]) / math.log(2)
