"""CIDEr-D, CIDEr, BLEU and ROUGE-L of captions, with the same values as the COCO caption scorers.

Papers that report "CIDEr" on COCO mean CIDEr-D; the two differ (see `cider_scores`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from arlow_vl.evaluation.metrics.ngrams import ORDERS, NgramCounts, count_ngrams
from arlow_vl.evaluation.metrics.ptb import tokenize_caption
from arlow_vl.evaluation.metrics.rouge import rouge_l
from arlow_vl.printing import number_of

CIDER_SIGMA = 6.0
# The official BLEU adds these to its numerators and denominators.
TINY, SMALL = 1e-15, 1e-9


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one system. Lists and rows follow the order of the references."""

    cider: float
    """Mean CIDEr-D, at most 10; papers print it times 100."""
    cider_per_sample: list[float]
    bleu: list[float]
    """BLEU-1 to BLEU-4 of the corpus, 0 to 1; 0 where no n-gram of that order matches."""
    bleu_counts: Float[np.ndarray, "samples 10"]
    """Columns: matching n-grams of orders 1 to 4, n-grams of orders 1 to 4, words, words of the closest reference."""
    plain_cider_per_sample: list[float]
    """CIDEr without clipping and length penalty, at most 10."""
    rouge_per_sample: list[float]
    """ROUGE-L, 0 to 1."""


def caption_scores(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Scores one caption per image; both mappings are by image.

    Raises:
        ValueError: there are no captions, the two do not cover the same images, or an image has no reference.
    """
    if not references:
        raise ValueError("there are no captions to score")
    if predictions.keys() != references.keys():
        differing = sorted(predictions.keys() ^ references.keys())
        raise ValueError(
            f"predictions and references differ in {number_of(len(differing), 'image')}, the first is {differing[0]!r}"
        )
    if missing := [key for key, captions in references.items() if not captions]:
        raise ValueError(f"image {missing[0]!r} has no reference caption")
    candidates = [tokenize_caption(predictions[key]) for key in references]
    targets = [[tokenize_caption(caption) for caption in references[key]] for key in references]
    matches = match_ngrams(candidates, targets)
    cider_d, cider = cider_scores(matches)
    counts = bleu_counts(matches)
    return CaptionScores(
        math.fsum(cider_d) / len(cider_d),
        cider_d.tolist(),
        bleu(counts.sum(axis=0)).tolist(),
        counts,
        cider.tolist(),
        [rouge_l(*pair) for pair in zip(candidates, targets, strict=True)],
    )


@dataclass(frozen=True)
class Matches:
    """N-grams of candidates and of their references, joined where they are the same.

    Caption i of `candidates` is the candidate of image i; caption r of `targets` is a reference of `image_of[r]`.
    """

    candidates: NgramCounts
    targets: NgramCounts
    image_of: Int[np.ndarray, " references"]
    """The image of each reference, sorted."""
    in_target: Int[np.ndarray, " matches"]
    """Entries of `targets` whose n-gram occurs in the candidate of the same image."""
    in_candidate: Int[np.ndarray, " matches"]
    """The corresponding entries of `candidates`."""


def match_ngrams(candidates: Sequence[list[str]], targets: Sequence[list[list[str]]]) -> Matches:
    """Counts and joins the n-grams of a candidate and a list of references for each image, all tokenised."""
    counts = count_ngrams([*candidates, *(words for group in targets for words in group)])
    ours, theirs = counts.split(len(candidates))
    image_of = np.repeat(np.arange(len(targets)), [len(group) for group in targets])
    keys = ours.caption * counts.num_ngrams + ours.ngram
    by_key = np.argsort(keys, kind="stable")  # stable: sorted already within an order
    wanted = image_of[theirs.caption] * counts.num_ngrams + theirs.ngram
    place = np.searchsorted(keys, wanted, sorter=by_key)
    entry = by_key[np.minimum(place, len(keys) - 1)] if len(keys) else np.zeros_like(place)
    in_target = (keys[entry] == wanted).nonzero()[0] if len(keys) else np.zeros(0, np.int64)
    return Matches(ours, theirs, image_of, in_target, entry[in_target])


def cider_scores(matches: Matches) -> tuple[Float[np.ndarray, " images"], Float[np.ndarray, " images"]]:
    """Computes CIDEr-D and CIDEr of each image (Vedantam et al., 2015, arXiv:1411.5726), at most 10.

    Both are the cosine of tf-idf vectors, averaged over n-gram orders and references; document frequencies are those of
    the references. CIDEr-D clips the candidate's weights to the reference's and multiplies by a Gaussian of the
    difference in length. Words are not stemmed, as in the official code.
    """
    ours, theirs, image_of = matches.candidates, matches.targets, matches.image_of
    images = len(ours.lengths)
    # Sorted and compared: numpy's `unique` of such numbers takes ten times as long.
    seen = np.sort(image_of[theirs.caption] * theirs.num_ngrams + theirs.ngram)
    seen = seen[np.diff(seen, prepend=-1) > 0]
    frequency = np.bincount(seen % max(1, theirs.num_ngrams), minlength=theirs.num_ngrams)
    # An n-gram without a reference counts as if one image had it.
    inverse = math.log(images) - np.log(np.maximum(1, frequency))
    weights, target_weights = ours.count * inverse[ours.ngram], theirs.count * inverse[theirs.ngram]
    norms = vector_norms(ours, weights)[image_of] * vector_norms(theirs, target_weights)

    wanted, given = target_weights[matches.in_target], weights[matches.in_candidate]
    slot = theirs.caption[matches.in_target] * ORDERS + theirs.order[matches.in_target]
    # The official code measures lengths in bigrams.
    bigrams, target_bigrams = np.maximum(0, ours.lengths - 1), np.maximum(0, theirs.lengths - 1)
    penalty = np.exp(-((bigrams[image_of] - target_bigrams) ** 2) / (2 * CIDER_SIGMA**2))
    references = np.bincount(image_of, minlength=images)

    def of_images(products: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
        shared = np.bincount(slot, products, minlength=norms.size).reshape(norms.shape)
        cosines = np.divide(shared, norms, out=np.zeros_like(norms), where=norms > 0)
        return 10 * np.bincount(image_of, cosines.mean(axis=1) * factor, minlength=images) / references

    return of_images(np.minimum(given, wanted) * wanted, penalty), of_images(given * wanted, 1.0)


def vector_norms(counts: NgramCounts, weights: Float[np.ndarray, " entries"]) -> Float[np.ndarray, "captions orders"]:
    slot = counts.caption * ORDERS + counts.order
    squares = np.bincount(slot, weights**2, minlength=len(counts.lengths) * ORDERS)
    return np.sqrt(squares).reshape(-1, ORDERS)


def bleu_counts(matches: Matches) -> Float[np.ndarray, "images 10"]:
    """Returns `CaptionScores.bleu_counts`. Matches are clipped to the largest count in any one reference."""
    ours, theirs, image_of = matches.candidates, matches.targets, matches.image_of
    most = np.zeros(len(ours.count))
    np.maximum.at(most, matches.in_candidate, theirs.count[matches.in_target])
    slot = ours.caption * ORDERS + ours.order
    matching = np.bincount(slot, np.minimum(ours.count, most), minlength=len(ours.lengths) * ORDERS)
    available = np.maximum(0, ours.lengths[:, None] - np.arange(ORDERS))
    # Ties between references equally close in length go to the shorter.
    difference = np.abs(theirs.lengths - ours.lengths[image_of])
    nearest = np.lexsort((theirs.lengths, difference, image_of))
    closest = theirs.lengths[nearest[np.searchsorted(image_of, np.arange(len(ours.lengths)))]]
    return np.column_stack([matching.reshape(-1, ORDERS), available, ours.lengths, closest]).astype(np.float64)


def bleu(totals: Float[np.ndarray, "*batch 10"]) -> Float[np.ndarray, "*batch 4"]:
    """Computes BLEU-1 to BLEU-4 from sums of `CaptionScores.bleu_counts`.

    Without a matching n-gram of an order the score is 0 from that order on. The official code then returns what TINY
    and SMALL amount to: up to 0.03 for captions too short for such an n-gram.
    """
    precisions = (totals[..., :ORDERS] + TINY) / (totals[..., ORDERS : 2 * ORDERS] + SMALL)
    ratio = (totals[..., 8] + TINY) / (totals[..., 9] + SMALL)
    brevity = np.exp(1 - 1 / np.minimum(ratio, 1))
    scores = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, ORDERS + 1)) * brevity[..., None]
    has_matches = np.logical_and.accumulate(totals[..., :ORDERS] > 0, axis=-1)
    return np.where(has_matches, scores, 0.0)
