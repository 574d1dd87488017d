"""ROUGE-L of captions, as the COCO scorer computes it (Lin, 2004, W04-1013)."""

from collections.abc import Sequence

BETA = 1.2
"""Weight of recall over precision."""


def rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Computes the F-measure of the longest common subsequence, from the best precision and the best recall.

    The two may come from different references, as in the COCO scorer. A caption without words scores 0; the COCO scorer
    takes it for one empty word, which scores 1 against a reference without words.
    """
    if not candidate:
        return 0.0
    common = [longest_common_subsequence(candidate, words) for words in references]
    precision = max(common) / len(candidate)
    recall = max((length / len(words) for length, words in zip(common, references, strict=True) if words), default=0.0)
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    An integer has a bit for each word of `one`, so a word of `other` takes one addition (Hyyrö, 2004, "Bit-parallel
    LCS-length computation revisited"): a row of the usual table rises by 1 at some words; those bits are 0, others 1.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        hits = row & places.get(word, 0)
        row = (row + hits) | (row - hits)
    return len(one) - (row & every).bit_count()
