"""Pairs each sample with another image, so that what a model owes to seeing the right one can be measured."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", str, tuple[str, ...])


def shuffle_images(keys: Sequence[Key], labels: Sequence[str], *, seed: int = 0) -> list[int]:
    """Returns for each sample the position of one whose image to show instead.

    `keys` name the images; `labels` are captions, or names of what is not to be shown for one another. All samples of
    one image are shown the same other one, and every image is used. None is shown its own image, nor one with its own
    label as far as the most frequent label leaves that possible.

    Raises:
        ValueError: there are fewer than two images.
    """
    position = {key: place for place, key in reversed(list(enumerate(keys)))}
    if len(position) < 2:
        raise ValueError(f"shuffling needs two images at least, got {len(position)}")
    rng, images = np.random.default_rng(seed), sorted(position)
    groups = defaultdict(list)
    for place in rng.permutation(len(images)):
        groups[labels[position[images[place]]]].append(images[place])
    # Equal labels lie together, so a turn by the longest run takes every image out of its run.
    order = [key for group in groups.values() for key in group]
    longest = max(map(len, groups.values()))
    turn = longest if longest < len(order) else 1
    shown = {key: order[(place + turn) % len(order)] for place, key in enumerate(order)}
    return [position[shown[key]] for key in keys]
