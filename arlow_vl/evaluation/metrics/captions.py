"""CIDEr-D and BLEU of captions, number for number as the COCO caption scorers give them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.metrics.ptb import tokenize_caption

ORDERS = 4
CIDER_SIGMA = 6.0
# What the official BLEU adds to its numerators and denominators.
TINY, SMALL = 1e-15, 1e-9

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one system. Lists and rows follow the order of the references."""

    cider: float
    """Mean CIDEr-D, 10 at most for a caption; papers print it times 100."""
    cider_per_sample: list[float]
    bleu: list[float]
    """BLEU-1 to BLEU-4 of the corpus, 0 to 1; 0 where no n-gram of that order matches."""
    bleu_counts: Float[np.ndarray, "samples 10"]
    """Per sample: matching n-grams by order, n-grams by order, words, words of the reference closest in length."""


def caption_scores(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Scores one caption an image; both mappings are by image.

    Raises:
        ValueError: the two do not cover the same images, or an image has no reference.
    """
    if not references:
        raise ValueError("there are no captions to score")
    if predictions.keys() != references.keys():
        differing = sorted(predictions.keys() ^ references.keys())
        raise ValueError(f"predictions and references differ in {len(differing)} images, the first is {differing[0]!r}")
    if missing := [key for key, captions in references.items() if not captions]:
        raise ValueError(f"image {missing[0]!r} has no reference caption")
    candidates = [tokenize_caption(predictions[key]) for key in references]
    targets = [[tokenize_caption(caption) for caption in references[key]] for key in references]
    cider = cider_d(candidates, targets)
    counts = np.array([bleu_counts(*pair) for pair in zip(candidates, targets, strict=True)], dtype=np.float64)
    return CaptionScores(math.fsum(cider) / len(cider), cider, bleu(counts.sum(axis=0)).tolist(), counts)


def cider_d(candidates: Sequence[list[str]], targets: Sequence[list[list[str]]]) -> list[float]:
    """CIDEr-D of each candidate (Vedantam et al., 2015, arXiv:1411.5726), with document frequencies of the targets."""
    target_counts = [[count_ngrams(words) for words in group] for group in targets]
    frequency = Counter(ngram for group in target_counts for ngram in set().union(*group))
    log_images = math.log(len(targets))

    def weigh(counts: Counter[Ngram]) -> "Weights":
        # An n-gram of no reference counts as one of a single image.
        weights: list[dict[Ngram, float]] = [{} for _ in range(ORDERS)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, frequency[ngram])))
        norms = [math.sqrt(sum(weight**2 for weight in of_order.values())) for of_order in weights]
        # The official code measures lengths in bigrams.
        return Weights(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))

    scores = []
    for words, group in zip(candidates, target_counts, strict=True):
        candidate = weigh(count_ngrams(words))
        similarities = [similarity(candidate, weigh(counts)) for counts in group]
        scores.append(10 * sum(similarities) / len(similarities))
    return scores


@dataclass(frozen=True)
class Weights:
    """A caption as tf-idf vectors, one an order of n-grams."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


def similarity(candidate: Weights, target: Weights) -> float:
    """Mean cosine over the orders, with clipped counts and a Gaussian penalty on the difference in length."""
    total = 0.0
    for order in range(ORDERS):
        theirs, norms = target.weights[order], candidate.norms[order] * target.norms[order]
        shared = sum(
            min(weight, theirs[g]) * theirs[g] for g, weight in candidate.weights[order].items() if g in theirs
        )
        total += shared / norms if norms else shared
    return total / ORDERS * math.exp(-((candidate.length - target.length) ** 2) / (2 * CIDER_SIGMA**2))


def count_ngrams(words: list[str]) -> Counter[Ngram]:
    return Counter(
        tuple(words[start : start + order]) for order in range(1, ORDERS + 1) for start in range(len(words) - order + 1)
    )


def bleu_counts(candidate: list[str], targets: list[list[str]]) -> list[int]:
    """One row of `CaptionScores.bleu_counts`."""
    most: Counter[Ngram] = Counter()
    for words in targets:
        most |= count_ngrams(words)
    matching = [0] * ORDERS
    for ngram, count in count_ngrams(candidate).items():
        matching[len(ngram) - 1] += min(count, most[ngram])
    available = [max(0, len(candidate) - order) for order in range(ORDERS)]
    closest = min((abs(len(words) - len(candidate)), len(words)) for words in targets)[1]
    return [*matching, *available, len(candidate), closest]


def bleu(totals: Float[np.ndarray, "*batch 10"]) -> Float[np.ndarray, "*batch 4"]:
    """BLEU-1 to BLEU-4 from sums of `CaptionScores.bleu_counts`.

    Without a matching n-gram of an order the score is 0 from that order on. The official code then gives what its TINY
    and SMALL come to: up to 0.03 for captions that are too short to hold such an n-gram.
    """
    precisions = (totals[..., :ORDERS] + TINY) / (totals[..., ORDERS : 2 * ORDERS] + SMALL)
    ratio = (totals[..., 8] + TINY) / (totals[..., 9] + SMALL)
    brevity = np.exp(1 - 1 / np.minimum(ratio, 1))
    scores = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, ORDERS + 1)) * brevity[..., None]
    has_matches = np.logical_and.accumulate(totals[..., :ORDERS] > 0, axis=-1)
    return np.where(has_matches, scores, 0.0)
