# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The segment table: which text sees which text, and which image.

A token sees the last group of consecutive images before it in its own document. That needs no mask: it is a list of
(run of text -> run of encoder tokens) pairs, in order and disjoint, which is what varlen attention kernels take
(`cu_seqlens_q`, `cu_seqlens_k`). Padded batches, packed rows and interleaved documents all build the same table.

Ten tokens, three images of 2, 3 and 2 encoder tokens; the first two follow each other and are one group:

    column    0    1    2    3    4    5    6    7    8    9
    text      the  [A]  [B]  cat  and  dog  .    [C]  one  more
    sees      -    -    AB   AB   AB   AB   AB   C    C    C
    pool      A A B B B C C      the encoder tokens of all images, one after another: 0-1 is A, 2-4 is B, 5-6 is C

>>> from arlow_vl.models.arlow.documents import document_ids
>>> is_image = torch.tensor([[False, True, True, False, False, False, False, True, False, False]])
>>> documents = document_ids(torch.arange(10)[None])
>>> table = build_segment_table(is_image, documents, image_lengths=torch.tensor([2, 3, 2]))
>>> table.query_index.tolist(), table.query_runs.cu_seqlens.tolist()  # columns 2-6 and 7-9
([2, 3, 4, 5, 6, 7, 8, 9], [0, 5, 8])
>>> table.key_index, table.key_runs.cu_seqlens.tolist()  # the pool as it is: AB for the first run, C for the second
(None, [0, 5, 7])

The cache keeps what the next token will see, C alone:

>>> table.kept_starts.tolist(), table.kept_lengths.tolist()
([5], [2])

In the next turn the pool begins with it. With a fourth image D of one token, "yes [D] ." gives two pairs again:

>>> more = torch.tensor([[False, True, False]])
>>> table = build_segment_table(
...     more, document_ids(torch.arange(3)[None]), torch.tensor([1]), cached_lengths=torch.tensor([2]), cached_width=2
... )
>>> table.query_runs.cu_seqlens.tolist(), table.key_runs.cu_seqlens.tolist()  # "yes" sees C, "[D] ." see D
([0, 1, 3], [0, 2, 3])

Two cases are a mask over each row's encoder tokens instead: text behind a cache, which sees all that the cache holds
for its row, so that one graph serves every step; and the rule that a token sees all images before it, whose runs
overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache_arlow import CrossAttentionCacheLayer
from .configuration_arlow import ArlowConfig
from .documents import PADDING, first_documents, text_before
from .encoder_checks import refuse_wrong_lengths, refuse_wrong_pairs
from .image_numbers import (
    AS_THEY_CAME,
    PoolEntries,
    count_images,
    image_groups,
    images_of_last_documents,
    numbers_in_documents,
    numbers_in_groups,
    pool_entries,
)
from .runs import Movable, PaddedRuns, Runs

MOST_PADDED = 2  # padded runs may take so many times the room of their entries


@dataclass(frozen=True)
class SegmentTable(Movable):
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
    kept_starts: Tensor
    """(B,) int64: where in the pool the encoder tokens lie that a later token of the row will see."""
    kept_lengths: Tensor
    """(B,) int64: how many they are; 0 where the row sees no image any more."""
    entries: PoolEntries = AS_THEY_CAME
    """How this call's encoder tokens come into the pool."""

    @property
    def is_empty(self) -> bool:
        return self.query_index.shape[0] == 0

    @cached_property
    def kept(self) -> Tensor:
        """(B, room) int64: the entries of the pool that a cache keeps, anything behind a row's `kept_lengths`."""
        room = max(int(self.kept_lengths.max()), 1)
        entries = self.kept_starts[:, None] + torch.arange(room, device=self.kept_starts.device)
        return torch.minimum(entries, (self.kept_starts + self.kept_lengths - 1).clamp(min=0)[:, None])

    def first_seeing(self, batch: int, width: int) -> Tensor:
        """(B, T) bool: the tokens at which a run of text begins, each the last `<image>` of its group."""
        starts = self.query_index[self.query_runs.cu_seqlens[:-1].long()]
        marks = torch.zeros(batch * width, dtype=torch.bool, device=starts.device)
        return marks.index_fill(0, starts, True).view(batch, width)

    @property
    def groups(self) -> list[Tensor]:
        """Numbers of the runs that are padded together: all, unless the longest would make most of it padding; then
        those of about one length, of text and of encoder tokens."""
        sides = self.query_runs, self.key_runs
        if all(len(runs) * runs.max_seqlen <= MOST_PADDED * int(runs.cu_seqlens[-1]) for runs in sides):
            return [torch.arange(len(self.query_runs), device=self.query_index.device)]
        sizes = torch.stack([runs.lengths.float().log2().ceil() for runs in sides], dim=1)
        kinds, kind = torch.unique(sizes, dim=0, return_inverse=True)
        return [(kind == number).nonzero()[:, 0] for number in range(len(kinds))]

    @cached_property
    def padded_runs(self) -> list[PaddedRuns]:
        """The runs by `groups`, for kernels that take padded rows."""
        groups = self.groups
        if len(groups) == 1:
            return [PaddedRuns(None, self.query_runs, None, self.key_runs)]
        return [PaddedRuns(*self.query_runs.subset(n), *self.key_runs.subset(n)) for n in groups]

    @cached_property
    def padded_order(self) -> Tensor | None:
        """(Q,) int64: where each token lies in the entries of `padded_runs`, one after another; None: in its place."""
        index = [runs.query_index for runs in self.padded_runs if runs.query_index is not None]
        return torch.cat(index).argsort() if index else None

    def ready(self) -> None:
        """Computes all that a training step asks for, so that the device it goes to is never asked."""
        for runs in self.padded_runs:
            runs.query_runs.ready()
            runs.key_runs.ready()
        _ = self.padded_order

    @classmethod
    def of_pairs(
        cls, pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]], *, batch: int, width: int, encoder_tokens: int
    ) -> "SegmentTable":
        """A table made by hand, of ((first text, end), (first encoder token, end)) in the flattened batch and pool.

        Raises:
            ValueError: runs that are empty, run backwards, overlap, leave their row, or leave encoder tokens out.
        """
        refuse_wrong_pairs(pairs, batch=batch, width=width, encoder_tokens=encoder_tokens)
        text, encoder = (torch.tensor([pair[side] for pair in pairs]).reshape(-1, 2) for side in (0, 1))
        query_index = torch.cat([torch.arange(start, end) for (start, end), _ in pairs] or [text.new_zeros(0)])
        kept = torch.zeros(batch, 2, dtype=torch.long)
        for (_, end), run in pairs:
            if end % width == 0:  # it holds the last token of its row
                kept[end // width - 1] = torch.tensor(run)
        sides = Runs.of_lengths(text.diff()[:, 0]), Runs.of_lengths(encoder.diff()[:, 0])
        return cls(query_index, sides[0], None, sides[1], kept[:, 0], kept.diff()[:, 0])


@dataclass(frozen=True)
class SegmentMask(Movable):
    """Which of its row's K encoder tokens each token sees. Costs B * T * K, and runs on kernels that take a mask."""

    sees: Tensor
    """(B, T) or (B, 1) bool: the tokens that see any image."""
    mask: Tensor
    """(B, T, K) or (B, 1, K) bool; all True where a token sees nothing, so that no softmax is over nothing."""
    key_index: Tensor | None
    """(B, K) int64: each row's encoder tokens as positions in the pool; None: what the cache holds, as it is."""
    kept: Tensor | None
    """(B, room) int64: what a cache keeps of the pool, anything behind a row's `kept_lengths`; None: what it holds."""
    kept_lengths: Tensor
    """(B,) int64: how many encoder tokens a later token of the row will see."""
    entries: PoolEntries = AS_THEY_CAME
    """As in `SegmentTable`."""
    kept_images: Tensor | None = None
    """(B,) int64: how many images the document has had that each row goes on with; None: as many as before."""
    is_empty = False


def image_positions(
    config: ArlowConfig,
    embed_tokens,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """(B, T) bool, True on the `<image>` tokens of text: a masked one asks for no image.

    Where embeddings came alone, those count that are the one of `<image>`. The mask is (B, past + T), or absent.
    """
    if input_ids is not None:
        is_image = input_ids == config.image_token_id
    else:
        assert inputs_embeds is not None
        image = embed_tokens(torch.tensor([config.image_token_id], device=inputs_embeds.device))
        # But for rounding: an adapter's product rounds otherwise for one token than for many.
        rounding = 8 * torch.finfo(image.dtype).eps * image.abs().max()
        is_image = ((inputs_embeds - image).abs() <= rounding).all(-1)
    if attention_mask is None or attention_mask.ndim != 2:
        return is_image
    return is_image & attention_mask[:, -is_image.shape[1] :].bool()


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
    batch, width = is_image.shape
    device = is_image.device
    is_image, closes = image_groups(is_image, documents, count_images(image_lengths, image_index))
    image_lengths, entries = pool_entries(image_lengths, numbers_in_groups(is_image, closes), image_index)
    closes = closes.flatten()

    # Groups 0..B-1 are what the cache holds for each row, groups B.. are this call's, in order. Each token is given the
    # last one that closed before it, wherever that is; then what closed in another document is taken away again.
    group = batch - 1 + closes.cumsum(0).view(batch, width)
    closing_document = torch.cat([documents[:, 0], documents.flatten()[closes]])
    in_own_document = (group >= batch) & (closing_document[group] == documents)
    rows = torch.arange(batch, device=device)[:, None].expand(batch, width)
    seen = torch.where(in_own_document, group, PADDING)
    if cached_lengths is not None:
        before_groups = (closes.view(batch, width).cumsum(1) == 0) & (documents != PADDING)
        goes_on = before_groups & (documents == first_documents(documents))
        seen = torch.where(goes_on & (cached_lengths > 0)[:, None], rows, seen)

    # A run is text in a row that sees one group; its keys are that group's slice of the pool. Neighbours that see
    # nothing drop out before runs are told apart, so a run may go on behind padding, but never into another group.
    starts, lengths = _group_extents(is_image, closes, image_lengths, cached_lengths, cached_width)
    seen = torch.where((seen != PADDING) & (lengths[seen] > 0), seen, PADDING)  # of no tokens nothing is seen
    query_index = (seen.flatten() != PADDING).nonzero().squeeze(1)
    groups, query_lengths = torch.unique_consecutive(seen.flatten()[query_index], return_counts=True)
    key_runs = Runs.of_lengths(lengths[groups])
    # From an entry's place among the keys to its place in the pool: the same shift for all of a run.
    offsets = torch.repeat_interleave(starts[groups] - key_runs.cu_seqlens[:-1], lengths[groups])
    key_index = torch.arange(offsets.shape[0], device=device) + offsets
    in_pool_order = cached_width == 0 or image_lengths.shape[0] == 0  # else a row's old and new keys lie far apart
    if in_pool_order and key_index.shape[0] == batch * cached_width + int(image_lengths.sum()):
        key_index = None  # runs are in order and disjoint, so as many as there are is all of them

    # The next token of a row will see what its last one sees. A row without text in this call has not moved on: it
    # keeps what the cache holds for it.
    last_text = torch.where(documents != PADDING, torch.arange(width, device=device), PADDING).amax(1, keepdim=True)
    kept = seen.gather(1, last_text.clamp(min=0))[:, 0]
    if cached_lengths is not None:
        kept = torch.where(last_text[:, 0] == PADDING, rows[:, 0], kept)
    kept_lengths = torch.where(kept == PADDING, 0, lengths[kept])
    kept_starts = starts[kept.clamp(min=0)]
    return SegmentTable(
        query_index, Runs.of_lengths(query_lengths), key_index, key_runs, kept_starts, kept_lengths, entries
    )


def _group_extents(
    is_image: Tensor, closes: Tensor, image_lengths: Tensor, cached_lengths: Tensor | None, cached_width: int
) -> tuple[Tensor, Tensor]:
    """Where each group starts in the pool, and how long it is: the cached groups of the rows, then the new ones."""
    batch = is_image.shape[0]
    cached_starts = torch.arange(batch, device=is_image.device) * cached_width
    if cached_lengths is None:
        cached_lengths = torch.zeros_like(cached_starts)
    ends = F.pad(image_lengths.cumsum(0), (1, 0)) + batch * cached_width
    # A group ends where its last image does, and starts where the group before it ended: none lies between them.
    images_so_far = is_image.flatten().cumsum(0)[closes]
    group_ends = ends[images_so_far]
    group_starts = torch.cat([ends[:1], group_ends])[:-1]
    return torch.cat([cached_starts, group_starts]), torch.cat([cached_lengths, group_ends - group_starts])


def cached_segments(lengths: Tensor, width: int) -> SegmentMask:
    """Text behind a cache that brings no image: every token sees what the cache holds for its row.

    `lengths` is (B,) int64, the encoder tokens of each row; `width` the room that the cache has for each.
    """
    sees = lengths[:, None] > 0
    mask = torch.arange(width, device=lengths.device) < lengths[:, None, None]
    return SegmentMask(sees, mask | ~sees[..., None], None, None, lengths)


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
    """As `build_segment_table`, for the rule that a token sees every image before it in its own document.

    `cached_images` is (B,) int64: the images that the document has had with which each row goes on.
    """
    batch = is_image.shape[0]
    is_image, closes = image_groups(is_image, documents, count_images(image_lengths, image_index))
    numbers = numbers_in_documents(is_image, documents, cached_images)
    image_lengths, entries = pool_entries(image_lengths, numbers, image_index)
    # Images seen so far are counted, and `ends` makes encoder tokens of a count. All images before a token in its
    # document are then one stretch: from the count at the document's start to that at the last group that closed.
    ends = F.pad(image_lengths.cumsum(0), (1, 0))
    so_far = is_image.flatten().cumsum(0).view_as(documents)
    before = so_far - is_image.long()
    previous = text_before(documents != PADDING)
    starts_document = (previous < 0) | (documents.gather(1, previous.clamp(min=0)) != documents)
    starts_document &= documents != PADDING

    def latest(counts: Tensor, where: Tensor) -> Tensor:
        """(B, T): the count at the last marked token up to each; counts grow along the flattened batch."""
        return torch.where(where, counts, 0).flatten().cummax(0).values.view_as(counts)

    # A row's keys: what the cache holds for it, then its images of this call, with anything behind them. They come out
    # of a pool that has all rows' cached tokens first.
    row_starts = ends[before[:, 0]]
    cached = torch.zeros_like(row_starts) if cached_lengths is None else cached_lengths
    lengths = cached + ends[so_far[:, -1]] - row_starts
    keys = torch.arange(int(lengths.max()), device=is_image.device)
    rows = torch.arange(batch, device=is_image.device)
    new = batch * cached_width + row_starts[:, None] + keys - cached[:, None]
    key_index = torch.where(keys < cached[:, None], rows[:, None] * cached_width + keys, new)
    key_index = key_index.clamp(max=batch * cached_width + int(ends[-1]) - 1)

    shift = (cached - row_starts)[:, None]  # from counts in the pool of this call to counts in the row
    first = ends[latest(before, starts_document)] + shift
    if cached_lengths is not None:
        first = torch.where(documents == first_documents(documents), 0, first)
    end = ends[latest(so_far, closes)] + shift
    mask = (keys >= first[..., None]) & (keys < end[..., None])
    sees = mask.any(-1) & (documents != PADDING)

    # A row's last document alone goes on behind this call. Mostly it is the only one, and everything is kept.
    last_text = torch.where(documents != PADDING, torch.arange(documents.shape[1], device=documents.device), PADDING)
    last_text = last_text.amax(1)
    dropped = torch.where(last_text == PADDING, 0, first.gather(1, last_text.clamp(min=0)[:, None])[:, 0])
    kept = key_index
    if bool(dropped.any()):
        kept = key_index.gather(1, (keys + dropped[:, None]).clamp(max=max(len(keys) - 1, 0)))
    images = images_of_last_documents(is_image, documents, cached_images)
    return SegmentMask(sees, mask | ~sees[..., None], key_index, kept, lengths - dropped, entries, images)


def build_segments(
    config: ArlowConfig,
    is_image: Tensor,
    documents: Tensor,
    image_lengths: Tensor,
    image_index: Tensor | None = None,
    cached: CrossAttentionCacheLayer | None = None,
) -> SegmentTable | SegmentMask:
    """What text sees of this call's images and of those that the cache holds, by the rule of the config."""
    held: dict[str, Any] = {}
    if cached is not None:
        held = {"cached_lengths": cached.lengths, "cached_width": cached.get_seq_length()}
    if config.cross_attention_sees == "last_group":
        return build_segment_table(is_image, documents, image_lengths, image_index, **held)
    if cached is not None:
        held["cached_images"] = cached.images
    return build_segment_mask(is_image, documents, image_lengths, image_index, **held)


def flatten_images(
    encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None, encoder_lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Encoder tokens as one flat (K, D) list, and the (N,) int64 length of each image.

    They come as (N, P, D), with a mask of what counts, or flat already with their lengths.
    """
    if encoder_lengths is not None:
        refuse_wrong_lengths(encoder_lengths, len(encoder_hidden_states))
        return encoder_hidden_states, encoder_lengths
    count, width = encoder_hidden_states.shape[:2]
    if encoder_attention_mask is None:
        lengths = torch.full((count,), width, dtype=torch.long, device=encoder_hidden_states.device)
        return encoder_hidden_states.flatten(0, 1), lengths
    mask = encoder_attention_mask.bool()
    return encoder_hidden_states[mask], mask.sum(1)
