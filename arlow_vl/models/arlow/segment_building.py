# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Builders of the segment table and the segment mask, which `segments` defines."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache_arlow import CrossAttentionCacheLayer
from .configuration_arlow import ArlowConfig
from .documents import PADDING, first_documents, text_before
from .image_numbers import (
    AS_THEY_CAME,
    count_images,
    image_groups,
    images_of_last_documents,
    numbers_in_documents,
    numbers_in_groups,
    pool_entries,
)
from .runs import Runs
from .segments import SegmentMask, SegmentTable


def build_segments(
    config: ArlowConfig,
    is_image: Tensor,
    documents: Tensor,
    image_lengths: Tensor,
    image_index: Tensor | None = None,
    cached: CrossAttentionCacheLayer | None = None,
) -> SegmentTable | SegmentMask:
    """The table under `cross_attention_sees="last_group"`, the mask under "all_previous".

    `cached` holds the images of earlier calls; the other arguments are those of `build_segment_table`.
    """
    held: dict[str, Any] = {}
    if cached is not None:
        held = {"cached_lengths": cached.lengths, "cached_width": cached.get_seq_length()}
    if config.cross_attention_sees == "last_group":
        return build_segment_table(is_image, documents, image_lengths, image_index, **held)
    if cached is not None:
        held["cached_images"] = cached.images
    return build_segment_mask(is_image, documents, image_lengths, image_index, **held)


def build_segment_table(
    is_image: Tensor,
    documents: Tensor,
    image_lengths: Tensor,
    image_index: Tensor | None = None,
    *,
    cached_lengths: Tensor | None = None,
    cached_width: int = 0,
) -> SegmentTable:
    """Pairs runs of text with runs of encoder tokens.

    The last `<image>` of a group already sees its whole group: it is the token that predicts the first word about it.

    Args:
        is_image: (B, T) bool, True on `<image>` tokens, as many as there are images.
        documents: (B, T) int64 from `document_ids`.
        image_lengths: (N,) int64, encoder tokens of each image in the order of the `<image>` tokens, row by row; with
            `image_index` (M,), of each image that they share.
        image_index: (N,) int64, where texts share images: which of the M images each `<image>` stands for.
        cached_lengths: (B,) int64, encoder tokens in the cache that each row still sees.
        cached_width: room that the cache has for each row.

    Raises:
        ValueError: the number of images differs from the number of `<image>` tokens.
    """
    batch = is_image.shape[0]
    is_image, closes = image_groups(is_image, documents, count_images(image_lengths, image_index))
    image_lengths, entries = pool_entries(image_lengths, numbers_in_groups(is_image, closes), image_index)
    starts, lengths = _group_extents(is_image, closes, image_lengths, cached_lengths, cached_width)
    seen = _seen_groups(closes, documents, cached_lengths)
    seen = torch.where((seen != PADDING) & (lengths[seen] > 0), seen, PADDING)  # a group may be of no encoder tokens

    # A run is text in a row that sees one group; its keys are that group's slice of the pool. Neighbours that see
    # nothing drop out before runs are told apart, so a run may continue behind padding, but never into another group.
    query_index = (seen.flatten() != PADDING).nonzero().squeeze(1)
    groups, query_lengths = torch.unique_consecutive(seen.flatten()[query_index], return_counts=True)
    key_lengths = lengths[groups]
    key_runs = Runs.of_lengths(key_lengths)
    key_index = _slices_of_pool(starts[groups], key_lengths, key_runs)
    in_pool_order = cached_width == 0 or image_lengths.shape[0] == 0  # else a row's old and new keys lie far apart
    if in_pool_order and key_index.shape[0] == batch * cached_width + int(image_lengths.sum()):
        key_index = None  # runs are in order and disjoint, so as many as there are is all of them

    kept = _kept_groups(seen, documents, has_cache=cached_lengths is not None)
    kept_lengths = torch.where(kept == PADDING, 0, lengths[kept])
    kept_starts = starts[kept.clamp(min=0)]
    return SegmentTable(
        query_index, Runs.of_lengths(query_lengths), key_index, key_runs, kept_starts, kept_lengths, entries
    )


def _group_extents(
    is_image: Tensor, closes: Tensor, image_lengths: Tensor, cached_lengths: Tensor | None, cached_width: int
) -> tuple[Tensor, Tensor]:
    """(B + groups,) int64 each: the first encoder token of each group in the pool, and the number of its tokens.

    Groups 0..B-1 are what the cache holds for each row, groups B.. are this call's, in order.
    """
    batch = is_image.shape[0]
    cached_starts = torch.arange(batch, device=is_image.device) * cached_width
    if cached_lengths is None:
        cached_lengths = torch.zeros_like(cached_starts)
    ends = F.pad(image_lengths.cumsum(0), (1, 0)) + batch * cached_width
    # A group ends where its last image does, and starts where the group before it ended: none lies between them.
    images_so_far = is_image.flatten().cumsum(0)[closes.flatten()]
    group_ends = ends[images_so_far]
    group_starts = torch.cat([ends[:1], group_ends])[:-1]
    return torch.cat([cached_starts, group_starts]), torch.cat([cached_lengths, group_ends - group_starts])


def _seen_groups(closes: Tensor, documents: Tensor, cached_lengths: Tensor | None) -> Tensor:
    """(B, T) int64: the group that each token sees, numbered as in `_group_extents`; PADDING: none.

    `closes` is (B, T) bool, True on the last `<image>` of each group.
    """
    batch = closes.shape[0]
    # Each token is given the last group that closed before it, in whichever document; groups of other documents are
    # taken away again.
    group = batch - 1 + closes.flatten().cumsum(0).view_as(closes)
    closing_document = torch.cat([documents[:, 0], documents[closes]])
    in_own_document = (group >= batch) & (closing_document[group] == documents)
    seen = torch.where(in_own_document, group, PADDING)
    if cached_lengths is None:
        return seen
    before_groups = (closes.cumsum(1) == 0) & (documents != PADDING)
    continues = before_groups & (documents == first_documents(documents))
    rows = torch.arange(batch, device=closes.device)[:, None]
    return torch.where(continues & (cached_lengths > 0)[:, None], rows, seen)


def _slices_of_pool(starts: Tensor, lengths: Tensor, runs: Runs) -> Tensor:
    """(K,) int64: the places in the pool of the slices that begin at `starts`, one slice a run."""
    # From an entry's place among the keys to its place in the pool: the same shift for all of a run.
    offsets = torch.repeat_interleave(starts - runs.cu_seqlens[:-1], lengths)
    return torch.arange(offsets.shape[0], device=offsets.device) + offsets


def _kept_groups(seen: Tensor, documents: Tensor, *, has_cache: bool) -> Tensor:
    """(B,) int64: the group that the next token of each row will see, the one that its last text token sees."""
    last_text = _last_text(documents)
    kept = seen.gather(1, last_text.clamp(min=0)[:, None])[:, 0]
    if not has_cache:
        return kept
    rows = torch.arange(len(seen), device=seen.device)
    return torch.where(last_text == PADDING, rows, kept)  # a row without text in this call keeps what it had


def _last_text(documents: Tensor) -> Tensor:
    """(B,) int64: the column of each row's last text token, PADDING where the row has none."""
    columns = torch.arange(documents.shape[1], device=documents.device)
    return torch.where(documents != PADDING, columns, PADDING).amax(1)


def cached_segments(lengths: Tensor, width: int) -> SegmentMask:
    """The mask for text behind a cache that brings no image: every token sees what the cache holds for its row.

    `lengths` is (B,) int64, the encoder tokens of each row; `width` the room that the cache has for each.
    """
    sees = lengths[:, None] > 0
    mask = torch.arange(width, device=lengths.device) < lengths[:, None, None]
    return SegmentMask(sees, mask | ~sees[..., None], None, None, lengths, AS_THEY_CAME)


def build_segment_mask(
    is_image: Tensor,
    documents: Tensor,
    image_lengths: Tensor,
    image_index: Tensor | None = None,
    *,
    cached_lengths: Tensor | None = None,
    cached_width: int = 0,
    cached_images: Tensor | None = None,
) -> SegmentMask:
    """Builds the mask for the rule that a token sees every image before it in its own document.

    `cached_images` is (B,) int64: the number of earlier images in the document that each row continues. The other
    arguments are those of `build_segment_table`.
    """
    is_image, closes = image_groups(is_image, documents, count_images(image_lengths, image_index))
    numbers = numbers_in_documents(is_image, documents, cached_images)
    image_lengths, entries = pool_entries(image_lengths, numbers, image_index)
    ends = F.pad(image_lengths.cumsum(0), (1, 0))  # from a count of images to the encoder tokens of so many
    images_so_far = is_image.flatten().cumsum(0).view_as(documents)
    images_before = images_so_far - is_image.long()

    # A row's keys: what the cache holds for it, then its images of this call.
    row_starts = ends[images_before[:, 0]]
    cached = torch.zeros_like(row_starts) if cached_lengths is None else cached_lengths
    lengths = cached + ends[images_so_far[:, -1]] - row_starts
    keys = torch.arange(int(lengths.max()), device=is_image.device)
    key_index = _keys_of_rows(keys, cached, cached_width, row_starts, ends)

    first, end = (ends[count] for count in _seen_images(images_before, images_so_far, closes, documents))
    shift = (cached - row_starts)[:, None]  # from places among this call's encoder tokens to places among a row's keys
    first, end = first + shift, end + shift
    if cached_lengths is not None:
        first = torch.where(documents == first_documents(documents), 0, first)
    mask = (keys >= first[..., None]) & (keys < end[..., None])
    sees = mask.any(-1) & (documents != PADDING)

    # Later calls continue a row's last document alone. Mostly it is the only one, and everything is kept.
    last_text = _last_text(documents)
    dropped = torch.where(last_text == PADDING, 0, first.gather(1, last_text.clamp(min=0)[:, None])[:, 0])
    kept = key_index
    if bool(dropped.any()):
        kept = key_index.gather(1, (keys + dropped[:, None]).clamp(max=max(len(keys) - 1, 0)))
    images = images_of_last_documents(is_image, documents, cached_images)
    return SegmentMask(sees, mask | ~sees[..., None], key_index, kept, lengths - dropped, entries, images)


def _keys_of_rows(keys: Tensor, cached: Tensor, cached_width: int, row_starts: Tensor, ends: Tensor) -> Tensor:
    """(B, K) int64: the place in the pool of each of a row's `keys`, any place behind the row's last one.

    The pool begins with the cached tokens of all rows. `cached` is (B,), how many of them each row has; `row_starts`
    (B,) its first encoder token of this call.
    """
    rows = torch.arange(len(cached), device=keys.device)
    new = len(cached) * cached_width + row_starts[:, None] + keys - cached[:, None]
    key_index = torch.where(keys < cached[:, None], rows[:, None] * cached_width + keys, new)
    return key_index.clamp(max=len(cached) * cached_width + int(ends[-1]) - 1)


def _seen_images(
    images_before: Tensor, images_so_far: Tensor, closes: Tensor, documents: Tensor
) -> tuple[Tensor, Tensor]:
    """(B, T) int64 each: the first image of this call that each token sees, and the one behind its last.

    All images before a token in its document are one stretch: from the count of images at the document's start to that
    at the last group that closed.
    """
    previous = text_before(documents != PADDING)
    starts_document = (previous < 0) | (documents.gather(1, previous.clamp(min=0)) != documents)
    starts_document &= documents != PADDING
    return _latest(images_before, starts_document), _latest(images_so_far, closes)


def _latest(counts: Tensor, where: Tensor) -> Tensor:
    """(B, T): the count at the last marked token up to each; counts grow along the flattened batch."""
    return torch.where(where, counts, 0).flatten().cummax(0).values.view_as(counts)
