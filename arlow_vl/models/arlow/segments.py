# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The segment table: which text sees which text, and which image.

A token sees the last group of consecutive images before it in its own document. That needs no mask: it is a list of
(run of text -> run of encoder tokens) pairs, in order and disjoint, which is what varlen attention kernels take
(`cu_seqlens_q`, `cu_seqlens_k`). Padded batches, packed rows and interleaved documents all build the same table.

Two cases are a mask over each row's encoder tokens instead: text behind a cache, which sees all that the cache holds
for its row, so that one graph serves every step; and the rule that a token sees all images before it, whose runs
overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -1
MOST_PADDED = 2  # padded runs may take so many times the room of their entries


@dataclass(frozen=True)
class Runs:
    """Runs of consecutive entries of a flat list, and where they lie in a table padded to the longest run."""

    cu_seqlens: Tensor
    """(R + 1,) int32: run r is entries cu_seqlens[r] up to cu_seqlens[r + 1]."""
    max_seqlen: int

    @classmethod
    def of_lengths(cls, lengths: Tensor) -> "Runs":
        longest = int(lengths.max()) if lengths.numel() else 0
        return cls(F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32), longest)

    def __len__(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @cached_property
    def lengths(self) -> Tensor:
        return self.cu_seqlens.diff()

    @cached_property
    def is_ragged(self) -> bool:
        return bool((self.lengths != self.max_seqlen).any())

    @cached_property
    def slots(self) -> Tensor:
        """(entries,) int64: where each entry lies in the flattened (R, max_seqlen) table."""
        run = torch.repeat_interleave(torch.arange(len(self), device=self.cu_seqlens.device), self.lengths)
        within = torch.arange(run.shape[0], device=run.device) - self.cu_seqlens[run]
        return run * self.max_seqlen + within

    def pad(self, flat: Tensor) -> Tensor:
        """(entries, ...) -> (R, max_seqlen, ...), zeros behind each run."""
        if not self.is_ragged:
            return flat.unflatten(0, (len(self), self.max_seqlen))
        padded = flat.new_zeros(len(self) * self.max_seqlen, *flat.shape[1:])
        return padded.index_copy(0, self.slots, flat).unflatten(0, (len(self), self.max_seqlen))

    def unpad(self, padded: Tensor) -> Tensor:
        """(R, max_seqlen, ...) -> (entries, ...)."""
        flat = padded.flatten(0, 1)
        return flat[self.slots] if self.is_ragged else flat

    def subset(self, numbers: Tensor) -> tuple[Tensor, "Runs"]:
        """Some of the runs by their numbers: the entries of theirs, (entries,) int64, and the runs over those alone."""
        runs = Runs.of_lengths(self.lengths[numbers])
        shift = torch.repeat_interleave(self.cu_seqlens[numbers] - runs.cu_seqlens[:-1], runs.lengths)
        return torch.arange(shift.shape[0], device=shift.device) + shift, runs

    @cached_property
    def padding_mask(self) -> Tensor | None:
        """(R, max_seqlen) bool, True where there is an entry; None where every run has the same length."""
        if not self.is_ragged:
            return None
        return torch.arange(self.max_seqlen, device=self.cu_seqlens.device) < self.lengths[:, None]


@dataclass(frozen=True)
class SegmentTable:
    """The cross-attention pairs of a batch of B rows of T tokens.

    Encoder tokens are counted in one flat pool: first what the cache holds (B rows of `cached_width`), then this call's
    images, one after another.
    """

    query_index: Tensor
    """(Q,) int64: the tokens that see an image, as positions in the flattened (B, T) batch."""
    query_runs: Runs
    key_index: Tensor | None
    """(K,) int64: the encoder tokens that they see, run after run, as positions in the pool; None: the whole pool."""
    key_runs: Runs
    keeps: Tensor
    """(B,) int64: the run whose keys a later token of this row will see; PADDING where the row has none."""

    @property
    def is_empty(self) -> bool:
        return self.query_index.shape[0] == 0

    @cached_property
    def groups(self) -> list[Tensor]:
        """Numbers of the runs that are padded together: all, unless the longest would make most of it padding; then
        those of about one length, of text and of encoder tokens."""
        sides = self.query_runs, self.key_runs
        if all(len(runs) * runs.max_seqlen <= MOST_PADDED * int(runs.cu_seqlens[-1]) for runs in sides):
            return [torch.arange(len(self.query_runs), device=self.query_index.device)]
        sizes = torch.stack([runs.lengths.float().log2().ceil() for runs in sides], dim=1)
        kinds, kind = torch.unique(sizes, dim=0, return_inverse=True)
        return [(kind == number).nonzero()[:, 0] for number in range(len(kinds))]

    @classmethod
    def of_pairs(
        cls, pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]], *, batch: int, width: int, encoder_tokens: int
    ) -> "SegmentTable":
        """A table made by hand, of ((first text, end), (first encoder token, end)) in the flattened batch and pool.

        Raises:
            ValueError: runs that are empty, run backwards, overlap, leave their row, or leave encoder tokens out.
        """
        for side, name, limit in ((0, "text", batch * width), (1, "encoder token", encoder_tokens)):
            previous_end = 0
            for number, pair in enumerate(pairs):
                start, end = pair[side]
                where = f"pair {number}: the {name} run {start} to {end}"
                if start >= end:
                    raise ValueError(f"{where} is empty or runs backwards; give first and end, first below end")
                if start < previous_end:
                    raise ValueError(
                        f"{where} overlaps the one before, which ends at {previous_end}; give them in order"
                    )
                if end > limit:
                    raise ValueError(f"{where} reaches beyond the {limit} there are")
                if side == 0 and start // width != (end - 1) // width:
                    raise ValueError(f"{where} crosses from row {start // width} into the next; split it there")
                if side == 1 and start != previous_end:
                    raise ValueError(
                        f"encoder tokens {previous_end} to {start} are in no pair, so no text would see them"
                    )
                previous_end = end
            if side == 1 and previous_end != limit:
                raise ValueError(f"encoder tokens {previous_end} to {limit} are in no pair: no text sees them")
        text, encoder = (torch.tensor([pair[side] for pair in pairs]).reshape(-1, 2) for side in (0, 1))
        query_index = torch.cat([torch.arange(start, end) for (start, end), _ in pairs] or [text.new_zeros(0)])
        last = torch.arange(1, batch + 1)[:, None] * width - 1
        holds_last = (text[:, 0] <= last) & (last < text[:, 1])
        keeps = (
            torch.where(holds_last.any(1), holds_last.int().argmax(1), PADDING) if pairs else last[:, 0] * 0 + PADDING
        )
        return cls(query_index, Runs.of_lengths(text.diff()[:, 0]), None, Runs.of_lengths(encoder.diff()[:, 0]), keeps)


@dataclass(frozen=True)
class SegmentMask:
    """Which of its row's K encoder tokens each token sees. Costs B * T * K, and runs on kernels that take a mask."""

    sees: Tensor
    """(B, T) or (B, 1) bool: the tokens that see any image."""
    mask: Tensor
    """(B, T, K) or (B, 1, K) bool; all True where a token sees nothing, so that no softmax is over nothing."""
    key_index: Tensor | None
    """(B, K) int64: each row's encoder tokens as positions in the pool; None: what the cache holds, as it is."""
    lengths: Tensor
    """(B,) int64: how many of the K a row has."""
    is_empty = False


def document_ids(position_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """(B, T) int64 document numbers, unique in the batch, PADDING on padding; documents start where positions restart.

    `position_ids` is (B, T); `attention_mask` (B, T) is nonzero on text. Padding inside a document does not part it.
    """
    if attention_mask is None:
        starts = F.pad(position_ids[:, 1:] <= position_ids[:, :-1], (1, 0), value=True)
        return starts.flatten().cumsum(0).view_as(starts)
    text = attention_mask.bool()
    last_text = torch.where(text, torch.arange(text.shape[1], device=text.device), -1).cummax(1).values
    previous = F.pad(last_text[:, :-1], (1, 0), value=-1)
    restarts = position_ids <= position_ids.gather(1, previous.clamp(min=0))
    starts = text & ((previous < 0) | restarts)
    return starts.flatten().cumsum(0).view_as(starts).masked_fill(~text, PADDING)


def packed_documents(position_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
    """`document_ids` of a padded batch with rows of several documents; None where no row has two (costs a sync)."""
    documents = document_ids(position_ids, attention_mask)
    first = documents.masked_fill(documents == PADDING, documents.numel() + 1).amin(1)
    if torch.compiler.is_compiling() or bool((documents.amax(1) > first).any()):
        return documents
    return None


def build_segment_table(
    is_image: Tensor,
    documents: Tensor,
    image_lengths: Tensor,
    cached_lengths: Tensor | None = None,
    cached_width: int = 0,
) -> SegmentTable:
    """Pairs runs of text with runs of encoder tokens.

    The last `<image>` of a group already sees its whole group: it is the token that predicts the first word about it.

    Args:
        is_image: (B, T) bool, True on `<image>` tokens.
        documents: (B, T) int64 from `document_ids`.
        image_lengths: (N,) int64, encoder tokens of each image in the order of the `<image>` tokens, row by row.
        cached_lengths: (B,) int64, encoder tokens in the cache that each row still sees.
        cached_width: room that the cache has for each row.

    Raises:
        ValueError: the number of images differs from the number of `<image>` tokens.
    """
    batch, width = is_image.shape
    device = is_image.device
    is_image, closes = _groups(is_image, documents, image_lengths)
    closes = closes.flatten()

    # Groups 0..B-1 are what the cache holds for each row, groups B.. are this call's, in order.
    group = batch - 1 + closes.cumsum(0).view(batch, width)
    closing_document = torch.cat([documents[:, 0], documents.flatten()[closes]])
    in_own_document = (group >= batch) & (closing_document[group] == documents)
    rows = torch.arange(batch, device=device)[:, None].expand(batch, width)
    seen = torch.where(in_own_document, group, PADDING)
    if cached_lengths is not None:
        before_groups = (closes.view(batch, width).cumsum(1) == 0) & (documents != PADDING)
        seen = torch.where(before_groups & (cached_lengths > 0)[:, None], rows, seen)

    starts, lengths = _group_extents(is_image, closes, image_lengths, cached_lengths, cached_width)
    seen = torch.where((seen != PADDING) & (lengths[seen] > 0), seen, PADDING)  # of no tokens nothing is seen
    query_index = (seen.flatten() != PADDING).nonzero().squeeze(1)
    groups, query_lengths = torch.unique_consecutive(seen.flatten()[query_index], return_counts=True)
    key_runs = Runs.of_lengths(lengths[groups])
    offsets = torch.repeat_interleave(starts[groups] - key_runs.cu_seqlens[:-1], lengths[groups])
    key_index = torch.arange(offsets.shape[0], device=device) + offsets
    in_pool_order = cached_width == 0 or image_lengths.shape[0] == 0  # else a row's old and new keys lie far apart
    if in_pool_order and key_index.shape[0] == batch * cached_width + int(image_lengths.sum()):
        key_index = None  # runs are in order and disjoint, so as many as there are is all of them
    last = torch.where(documents != PADDING, torch.arange(width, device=device), 0).amax(1, keepdim=True)
    keeps = _kept(seen.gather(1, last).squeeze(1), groups)
    return SegmentTable(query_index, Runs.of_lengths(query_lengths), key_index, key_runs, keeps)


def _groups(is_image: Tensor, documents: Tensor, image_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) each: the `<image>` tokens of text, and which of them end a group of consecutive ones."""
    is_image = is_image & (documents != PADDING)
    if int(is_image.sum()) != image_lengths.shape[0]:
        per_row = is_image.sum(1).tolist()
        raise ValueError(
            f"got {image_lengths.shape[0]} images for {sum(per_row)} <image> tokens (per row: {per_row}); "
            "give exactly one image for every <image>"
        )
    same_group_next = is_image[:, :-1] & is_image[:, 1:] & (documents[:, :-1] == documents[:, 1:])
    return is_image, is_image & ~F.pad(same_group_next, (0, 1))


def _group_extents(
    is_image: Tensor, closes: Tensor, image_lengths: Tensor, cached_lengths: Tensor | None, cached_width: int
) -> tuple[Tensor, Tensor]:
    """Where each group starts in the pool, and how long it is: the cached groups of the rows, then the new ones."""
    batch = is_image.shape[0]
    cached_starts = torch.arange(batch, device=is_image.device) * cached_width
    if cached_lengths is None:
        cached_lengths = torch.zeros_like(cached_starts)
    ends = F.pad(image_lengths.cumsum(0), (1, 0)) + batch * cached_width
    images_so_far = is_image.flatten().cumsum(0)[closes]
    group_ends = ends[images_so_far]
    group_starts = torch.cat([ends[:1], group_ends])[:-1]
    return torch.cat([cached_starts, group_starts]), torch.cat([cached_lengths, group_ends - group_starts])


def _kept(last_seen: Tensor, groups: Tensor) -> Tensor:
    """The run that each row's last token sees."""
    if not groups.shape[0]:
        return torch.full_like(last_seen, PADDING)
    matches = last_seen[:, None] == groups
    return torch.where(matches.any(1), matches.int().argmax(1), PADDING)


def cached_segments(lengths: Tensor, width: int) -> SegmentMask:
    """Text behind a cache that brings no image: every token sees what the cache holds for its row.

    `lengths` is (B,) int64, the encoder tokens of each row; `width` the room that the cache has for each.
    """
    sees = lengths[:, None] > 0
    mask = torch.arange(width, device=lengths.device) < lengths[:, None, None]
    return SegmentMask(sees, mask | ~sees[..., None], None, lengths)


def build_segment_mask(
    is_image: Tensor,
    documents: Tensor,
    image_lengths: Tensor,
    cached_lengths: Tensor | None = None,
    cached_width: int = 0,
) -> SegmentMask:
    """As `build_segment_table`, for the rule that a token sees every image before it in its own document."""
    batch = is_image.shape[0]
    is_image, closes = _groups(is_image, documents, image_lengths)
    ends = F.pad(image_lengths.cumsum(0), (1, 0))
    so_far = is_image.flatten().cumsum(0).view_as(documents)
    before = so_far - is_image.long()
    starts_document = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)

    def latest(counts: Tensor, where: Tensor) -> Tensor:
        """(B, T): the count at the last marked token up to each; counts grow along the flattened batch."""
        return torch.where(where, counts, 0).flatten().cummax(0).values.view_as(counts)

    row_starts = ends[before[:, 0]]
    cached = torch.zeros_like(row_starts) if cached_lengths is None else cached_lengths
    lengths = cached + ends[so_far[:, -1]] - row_starts
    keys = torch.arange(int(lengths.max()), device=is_image.device)
    rows = torch.arange(batch, device=is_image.device)
    new = batch * cached_width + row_starts[:, None] + keys - cached[:, None]
    key_index = torch.where(keys < cached[:, None], rows[:, None] * cached_width + keys, new)
    key_index = key_index.clamp(max=batch * cached_width + int(ends[-1]) - 1)

    shift = (cached - row_starts)[:, None]  # from counts in the pool of this call to counts in the row
    first = torch.zeros_like(documents) if cached_lengths is not None else ends[latest(before, starts_document)] + shift
    end = ends[latest(so_far, closes)] + shift
    mask = (keys >= first[..., None]) & (keys < end[..., None])
    sees = mask.any(-1) & (documents != PADDING)
    return SegmentMask(sees, mask | ~sees[..., None], key_index, lengths)


def flatten_images(
    encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None, encoder_lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Encoder tokens as one flat (K, D) list, and the (N,) int64 length of each image.

    They come as (N, P, D), with a mask of what counts, or flat already with their lengths.
    """
    if encoder_lengths is not None:
        if encoder_hidden_states.ndim != 2 or encoder_attention_mask is not None:
            raise ValueError("encoder_lengths goes with flat (K, D) encoder_hidden_states and no mask")
        if int(encoder_lengths.sum()) != encoder_hidden_states.shape[0] or bool((encoder_lengths < 1).any()):
            raise ValueError(
                f"encoder_lengths {encoder_lengths.tolist()} must be positive and add up to the "
                f"{encoder_hidden_states.shape[0]} rows of encoder_hidden_states"
            )
        return encoder_hidden_states, encoder_lengths
    if encoder_hidden_states.ndim != 3:
        raise ValueError(
            f"encoder_hidden_states of shape {tuple(encoder_hidden_states.shape)} must be (images, patches, hidden), "
            "or (patches, hidden) with encoder_lengths"
        )
    count, width = encoder_hidden_states.shape[:2]
    if encoder_attention_mask is None:
        lengths = torch.full((count,), width, dtype=torch.long, device=encoder_hidden_states.device)
        return encoder_hidden_states.flatten(0, 1), lengths
    mask = encoder_attention_mask.bool()
    return encoder_hidden_states[mask], mask.sum(1)
