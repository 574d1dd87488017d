"""Counts of n-grams of one to four words in many captions, as arrays.

Each n-gram has a number: a word by its first occurrence, a longer n-gram by the pair of the n-gram one word shorter and
its last word. Counting then means sorting, and a test set of 150,000 captions takes seconds.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from jaxtyping import Float, Int

ORDERS = 4


@dataclass(frozen=True)
class NgramCounts:
    """Entries for each n-gram of each caption, sorted by order and then by caption."""

    caption: Int[np.ndarray, " entries"]
    ngram: Int[np.ndarray, " entries"]
    """Number of the n-gram, below `num_ngrams`; n-grams of different orders have different numbers."""
    count: Float[np.ndarray, " entries"]
    order: Int[np.ndarray, " entries"]
    """The n-gram's length minus 1."""
    lengths: Int[np.ndarray, " captions"]
    """Number of words of each caption."""
    num_ngrams: int

    def split(self, at: int) -> "tuple[NgramCounts, NgramCounts]":
        """Splits into the captions before `at` and those from there on, renumbered from 0."""
        is_first = self.caption < at
        return self._entries(is_first, 0, self.lengths[:at]), self._entries(~is_first, at, self.lengths[at:])

    def _entries(self, is_kept: np.ndarray, first: int, lengths: np.ndarray) -> "NgramCounts":
        kept = self.caption[is_kept] - first, self.ngram[is_kept], self.count[is_kept], self.order[is_kept]
        return NgramCounts(*kept, lengths=lengths, num_ngrams=self.num_ngrams)


def count_ngrams(captions: Sequence[Sequence[str]]) -> NgramCounts:
    """Counts the n-grams of tokenised captions."""
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    number_of: defaultdict[str, int] = defaultdict(count().__next__)
    words = np.fromiter(map(number_of.__getitem__, chain.from_iterable(captions)), np.int64)
    owner = np.repeat(np.arange(len(captions)), lengths)
    behind = np.repeat(lengths.cumsum(), lengths) - np.arange(len(words))  # words from here to the caption's end
    ngrams, place, first_number = words, np.arange(len(words)), 0
    parts = []
    for order in range(ORDERS):
        if order:
            fits = behind[place] > order
            place = place[fits]
            pairs = ngrams[fits] * len(number_of) + words[place + order]
            ngrams = np.unique(pairs, return_inverse=True)[1]
        distinct = int(ngrams.max()) + 1 if len(ngrams) else 0
        keys, counts = np.unique(owner[place] * max(1, distinct) + ngrams, return_counts=True)
        caption, ngram = np.divmod(keys, max(1, distinct))
        parts.append((caption, ngram + first_number, counts.astype(np.float64), np.full(len(keys), order)))
        first_number += distinct
    caption, ngram, occurrences, orders = (np.concatenate(column) for column in zip(*parts, strict=True))
    return NgramCounts(caption, ngram, occurrences, orders, lengths, first_number)
