# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Image numbers: every encoder token carries that of its image, which tells the first of several from the second.

Attention over a group of images knows no order: keys that change places give the same sum, and "the first" and "the
second" would mean nothing. So waves of the number are added to what the encoder gave, before keys and values are made
of it. Images count from 0 in what a token may see together: their group, or under 'all_previous' their document.

The waves of the number 0 are zeros: an image that is alone is what it is without a number. They have no weights, and
there is no largest number.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import PADDING, first_documents, text_before
from .encoder_checks import refuse_wrong_count, refuse_wrong_index
from .runs import Movable

SLOWEST = 0.1
"""Radians from one number to the next in the slowest wave; the fastest has 1."""


def count_images(image_lengths: Tensor, image_index: Tensor | None) -> int:
    """Number of `<image>`s that the text must hold. Raises ValueError for an index of an image that did not come."""
    if image_index is None:
        return len(image_lengths)
    refuse_wrong_index(image_index, len(image_lengths))
    return len(image_index)


def image_groups(is_image: Tensor, documents: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(B, T) bool each: the `<image>` tokens of text, and those that end a group of neighbours.

    Padding between two `<image>`s does not split their group. Raises ValueError unless there are `count`.
    """
    is_text = documents != PADDING
    is_image = is_image & is_text
    refuse_wrong_count(is_image, count)
    # The next token of text is the previous one of the row read backwards; behind the last one it is the width.
    following = is_image.shape[1] - 1 - text_before(is_text.flip(1)).flip(1)
    has_following = following < is_image.shape[1]
    following = following.clamp(max=is_image.shape[1] - 1)
    continues = has_following & is_image.gather(1, following) & (documents.gather(1, following) == documents)
    return is_image, is_image & ~continues


def numbers_in_groups(is_image: Tensor, closes: Tensor) -> Tensor:
    """(N,) int64: the number of each image in its group, from the results of `image_groups`."""
    return _counted_from(F.pad(closes[is_image], (1, 0), value=True)[:-1])


def numbers_in_documents(is_image: Tensor, documents: Tensor, cached_images: Tensor | None = None) -> Tensor:
    """(N,) int64: the number of each image in its document.

    `cached_images` is (B,): the number of earlier images in the document that each row continues.
    """
    numbers = _counted_from(F.pad(documents[is_image], (1, 0), value=PADDING).diff() != 0)
    if cached_images is None:
        return numbers
    before = torch.where(documents == first_documents(documents), cached_images[:, None], 0)
    return numbers + before[is_image]


def images_of_last_documents(is_image: Tensor, documents: Tensor, cached_images: Tensor | None = None) -> Tensor:
    """(B,) int64: the number of images so far in the last document of each row, which later calls continue."""
    columns = torch.arange(documents.shape[1], device=documents.device)
    last_text = torch.where(documents != PADDING, columns, 0).amax(1, keepdim=True)
    last, first = documents.gather(1, last_text), first_documents(documents)
    images = (is_image & (documents == last)).sum(1)  # a row without text has neither, and keeps its count
    return images if cached_images is None else images + torch.where(last == first, cached_images[:, None], 0)[:, 0]


def _counted_from(is_first: Tensor) -> Tensor:
    entries = torch.arange(len(is_first), device=is_first.device)
    return entries - torch.where(is_first, entries, 0).cummax(0).values


@dataclass(frozen=True)
class PoolEntries(Movable):
    """Steps from the encoder tokens of a call to its part of the pool: number, project, put where they are seen."""

    tokens: Tensor | None = None
    """(E,) int64: the encoder tokens to project, those of an image under two numbers twice; None: as they came."""
    numbers: Tensor | None = None
    """(U,) int64: the number of each image; None: every image is alone."""
    owners: Tensor | None = None
    """(E,) int64: the image, as an index into `numbers`, that each token to project belongs to."""
    places: Tensor | None = None
    """(K,) int64: the projected token of each entry, where texts share images; None: one after another."""

    def numbered(self, encoder_hidden_states: Tensor) -> Tensor:
        """(tokens, D) as they came -> (E, D) to make keys and values of."""
        states = encoder_hidden_states if self.tokens is None else encoder_hidden_states[self.tokens]
        if self.numbers is None:
            return states
        return states + number_waves(self.numbers, states.shape[-1]).to(states.dtype)[self.owners]


AS_THEY_CAME = PoolEntries()


def pool_entries(
    image_lengths: Tensor, numbers: Tensor, image_index: Tensor | None = None
) -> tuple[Tensor, PoolEntries]:
    """(N,) int64 lengths of the images at each `<image>`, and the steps by which they come into the pool.

    Args:
        image_lengths: (M,) int64, encoder tokens of each image.
        numbers: (N,) int64, of the image at each `<image>`.
        image_index: (N,) int64, where texts share images: which of the M stands at each `<image>`.
    """
    several = torch.compiler.is_compiling() or bool(numbers.any())  # a compiled graph reads no value of its batch
    if image_index is None:
        return image_lengths, PoolEntries(numbers=numbers, owners=_owners(image_lengths)) if several else AS_THEY_CAME
    # The pool is as long as if every `<image>` had an image of its own; only the projection is done once for each image
    # and number.
    lengths = image_lengths[image_index]
    if not several:
        return lengths, PoolEntries(places=_tokens_of(image_index, image_lengths))
    pairs, pair = torch.unique(torch.stack([numbers, image_index]), dim=1, return_inverse=True)
    return lengths, PoolEntries(
        tokens=_tokens_of(pairs[1], image_lengths),
        numbers=pairs[0],
        owners=_owners(image_lengths[pairs[1]]),
        places=_tokens_of(pair, image_lengths[pairs[1]]),
    )


def _owners(lengths: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def _tokens_of(images: Tensor, lengths: Tensor) -> Tensor:
    """The tokens of these images, one image after another, where `lengths` are those of all."""
    starts = (lengths.cumsum(0) - lengths)[images]
    lengths = lengths[images]
    offsets = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths)
    return torch.arange(offsets.shape[0], device=offsets.device) + offsets


def number_waves(numbers: Tensor, dim: int) -> Tensor:
    """(U,) -> (U, dim) float32: sines and cosines of each number, less those of 0 (Vaswani et al., 2017,
    arXiv:1706.03762, section 3.5, with waves for tens of images instead of thousands of words)."""
    half = math.ceil(dim / 2)
    angles = numbers[:, None] * SLOWEST ** (torch.arange(half, device=numbers.device, dtype=torch.float32) / half)
    return torch.cat([angles.sin(), angles.cos() - 1], dim=-1)[:, :dim]
