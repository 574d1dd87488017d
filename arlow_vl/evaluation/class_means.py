"""A captioning baseline without language: the caption whose training images have the mean features nearest to an image.

It shows, in closed form, what a linear classifier on the encoder's features can name. A model whose captions of known
things score lower has not learnt to use its encoder's features.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

MOST_SIMILARITIES = 2**22
"""Largest number of similarities that are in memory at once, 32 MB; those of a single image may be more."""


def nearest_class_means(
    train_features: Float[np.ndarray, "train dim"],
    train_captions: Sequence[str],
    test_features: Float[np.ndarray, "test dim"],
) -> list[str]:
    """Returns for each test image the training caption with the nearest mean of features."""
    return [first for (first,) in captions_by_mean(train_features, train_captions, test_features, 1)]


def captions_by_mean(
    train_features: Float[np.ndarray, "train dim"],
    train_captions: Sequence[str],
    test_features: Float[np.ndarray, "test dim"],
    count: int,
) -> list[list[str]]:
    """Returns for each test image the `count` training captions with the nearest means, nearest first.

    The measure is the cosine of centred features, whitened by their covariance within captions (linear discriminant
    analysis).
    """
    captions, of_train = np.unique(np.asarray(train_captions), return_inverse=True)
    means = class_means_of(train_features, of_train)
    centre, whiten = whitening_within(train_features, of_train)
    of_caption, of_image = (
        normalise_rows((rows.astype(np.float64) - centre) @ whiten) for rows in (means, test_features)
    )
    nearest = np.empty((len(of_image), min(count, len(captions))), dtype=np.int64)
    rows = max(1, MOST_SIMILARITIES // len(captions))
    for start in range(0, len(of_image), rows):
        similar = of_image[start : start + rows] @ of_caption.T
        for place in range(nearest.shape[1]):
            best = similar.argmax(axis=1)  # of equal ones the first
            nearest[start : start + rows, place] = best
            similar[np.arange(len(best)), best] = -np.inf
    return captions[nearest].tolist()


def normalise_rows(features: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo(features.dtype).tiny)


def class_means_of(
    features: Float[np.ndarray, "rows dim"], classes: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "classes dim"]:
    """Returns the mean of each class; classes are numbered from 0 and none is empty."""
    means = np.zeros((int(classes.max()) + 1, features.shape[1]))
    np.add.at(means, classes, features.astype(np.float64))
    return means / np.bincount(classes)[:, None]


def whitening_within(
    features: Float[np.ndarray, "rows dim"], classes: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, "dim dim"]]:
    """Returns the centre of all rows and a whitening matrix: within a class, `(rows - centre) @ matrix` has a spherical
    covariance."""
    rows = features.astype(np.float64)
    means = class_means_of(rows, classes)
    covariance = shrunk_covariance(rows - means[classes], freedom=max(len(rows) - len(means), 1))
    return rows.mean(axis=0), np.linalg.cholesky(np.linalg.inv(covariance))


def shrunk_covariance(residuals: Float[np.ndarray, "rows dim"], *, freedom: int) -> Float[np.ndarray, "dim dim"]:
    """Returns the covariance of rows of mean zero, shrunk towards a multiple of the identity.

    The data decide by how much: oracle approximating shrinkage (Chen et al., 2010, arXiv:0907.4698, equation 23).
    """
    dim = residuals.shape[1]
    sample = residuals.T @ residuals / freedom
    trace, of_square = np.trace(sample), (sample * sample).sum()
    if trace == 0:  # one image per caption: the spread is unknown
        return np.eye(dim)
    away = (freedom + 1 - 2 / dim) * (of_square - trace**2 / dim)
    amount = min(1.0, ((1 - 2 / dim) * of_square + trace**2) / away) if away > 0 else 1.0
    return (1 - amount) * sample + amount * trace / dim * np.eye(dim)
