"""The training images nearest to an image, with what keeps training like a test.

A test image has no drawing of itself in training, and no near-duplicate (`arlow_vl.data.fetch.splits`). So neither may
a training image find itself, nor what is nearly itself.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from arlow_vl.data.fetch.images import NEAR_BITS, hash_distances
from arlow_vl.evaluation.class_means import captions_by_mean, normalise_rows, whitening_within

FOLDS = 10
"""Parts of training whose whitening is fitted on the others."""


def nearest(
    queries: Float[np.ndarray, "queries dim"],
    known: Float[np.ndarray, "known dim"],
    count: int,
    *,
    forbidden: Bool[np.ndarray, "queries known"] | None = None,
) -> list[list[int]]:
    """For each query the rows of `known` with the highest cosine, best first; of equal ones the first.

    Fewer than `count` where fewer are known or allowed.
    """
    similarity = normalise_rows(queries) @ normalise_rows(known).T
    if forbidden is not None:
        similarity[forbidden] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return [[int(row) for row in rows if np.isfinite(of[row])] for rows, of in zip(order, similarity, strict=True)]


def itself_or_near(bits: Bool[np.ndarray, "images bits"]) -> Bool[np.ndarray, "images images"]:
    """True for an image with itself and with its near-duplicates, by their difference hashes."""
    near = hash_distances(bits, bits) <= NEAR_BITS
    np.fill_diagonal(near, True)
    return near


def nearest_of_training(
    features: Float[np.ndarray, "images dim"],
    captions: Sequence[str],
    bits: Bool[np.ndarray, "images bits"],
    count: int,
    *,
    whitened: bool,
) -> list[list[int]]:
    """For each training image its nearest others, near-duplicates left out.

    A whitening knows the images that it was fitted on: among them those of one caption lie closer together than a new
    image lies to them. So each tenth of the images is whitened, and searches, in the other nine.
    """
    forbidden = itself_or_near(bits)
    if not whitened:
        return nearest(features, features, count, forbidden=forbidden)
    found: list[list[int]] = [[] for _ in features]
    fold_of = np.arange(len(features)) % min(FOLDS, len(features))
    for fold in range(int(fold_of.max()) + 1):
        own, others = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        some = whitened_features(features[others], [captions[row] for row in others.tolist()], features[own])
        for row, places in zip(own, nearest(*some, count, forbidden=forbidden[np.ix_(own, others)]), strict=True):
            found[row] = [int(others[place]) for place in places]
    return found


def nearest_of_others(
    queries: Float[np.ndarray, "queries dim"],
    features: Float[np.ndarray, "images dim"],
    captions: Sequence[str],
    count: int,
    *,
    whitened: bool,
) -> list[list[int]]:
    """For each held-out image the nearest training images."""
    return nearest(*(whitened_features(features, captions, queries) if whitened else (queries, features)), count)


def whitened_features(
    known: Float[np.ndarray, "known dim"], captions: Sequence[str], queries: Float[np.ndarray, "queries dim"]
) -> tuple[Float[np.ndarray, "queries dim"], Float[np.ndarray, "known dim"]]:
    """Queries and known images where images of one caption spread alike in all directions (see `class_means`)."""
    _, classes = np.unique(np.asarray(captions), return_inverse=True)
    centre, matrix = whitening_within(known, classes)
    return (queries - centre) @ matrix, (known - centre) @ matrix


def means_for_training(
    features: Float[np.ndarray, "images dim"],
    captions: Sequence[str],
    bits: Bool[np.ndarray, "images bits"],
    count: int,
) -> list[list[str]]:
    """For each training image the captions with the nearest means, of images of the other tenths alone.

    A near-duplicate of any image of the tenth counts in no mean.
    """
    near, found = itself_or_near(bits), [[] for _ in features]
    fold_of = np.arange(len(features)) % min(FOLDS, len(features))
    for fold in range(int(fold_of.max()) + 1):
        own = fold_of == fold
        others = np.flatnonzero(~own & ~near[own].any(axis=0))
        given = captions_by_mean(features[others], [captions[row] for row in others.tolist()], features[own], count)
        for row, of_row in zip(np.flatnonzero(own), given, strict=True):
            found[row] = of_row
    return found
