# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The segment table: which text sees which image.

A token sees the last group of consecutive images before it in its own document. That needs no mask: it is a list of
(run of text -> run of encoder tokens) pairs, in order and disjoint, which is what varlen attention kernels take
(`cu_seqlens_q`, `cu_seqlens_k`). Padded batches, packed rows and interleaved documents all build the same table.

Ten tokens, three images of 2, 3 and 2 encoder tokens; the first two follow each other and are one group:

    column    0    1    2    3    4    5    6    7    8    9
    text      the  [A]  [B]  cat  and  dog  .    [C]  one  more
    sees      -    -    AB   AB   AB   AB   AB   C    C    C
    pool      A A B B B C C      the encoder tokens of all images, one after another: 0-1 is A, 2-4 is B, 5-6 is C

>>> from arlow_vl.models.arlow.documents import document_ids
>>> from arlow_vl.models.arlow.segment_building import build_segment_table
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

import torch
from torch import Tensor

from .configuration_arlow import ArlowConfig
from .encoder_checks import refuse_wrong_lengths, refuse_wrong_pairs
from .image_numbers import AS_THEY_CAME, PoolEntries
from .runs import Movable, PaddedRuns, Runs

MOST_PADDED = 2  # times the room of their entries that padded runs may take


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
    """(B,) int64: the first place in the pool of the encoder tokens that a later token of the row will see."""
    kept_lengths: Tensor
    """(B,) int64: the number of those tokens; 0 where the row sees no image any more."""
    entries: PoolEntries = AS_THEY_CAME
    """Steps by which this call's encoder tokens come into the pool."""

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
        """Numbers of the runs that are padded together: all, unless most entries would then be padding.

        In that case runs of about one length, of text and of encoder tokens, are a group.
        """
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
        """Computes and caches all that a training step reads, so that the step never waits for the device."""
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
    """A mask over each row's K encoder tokens. It costs B * T * K and runs on kernels that take a mask."""

    sees: Tensor
    """(B, T) or (B, 1) bool: the tokens that see any image."""
    mask: Tensor
    """(B, T, K) or (B, 1, K) bool; all True where a token sees nothing, so that no softmax is over nothing."""
    key_index: Tensor | None
    """(B, K) int64: each row's encoder tokens as positions in the pool; None: what the cache holds, as it is."""
    kept: Tensor | None
    """(B, room) int64: what a cache keeps of the pool, anything behind a row's `kept_lengths`; None: what it holds."""
    kept_lengths: Tensor
    """(B,) int64: the number of encoder tokens that a later token of the row will see."""
    entries: PoolEntries
    """Steps by which this call's encoder tokens come into the pool."""
    kept_images: Tensor | None = None
    """(B,) int64: the number of images so far in the document that each row continues; None: as before."""
    is_empty = False


def image_positions(
    config: ArlowConfig,
    embed_tokens,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """(B, T) bool, True on the `<image>` tokens of text: a masked one asks for no image.

    Where only embeddings come, those that equal the embedding of `<image>` count. The mask is (B, past + T).
    """
    if input_ids is not None:
        is_image = input_ids == config.image_token_id
    else:
        assert inputs_embeds is not None
        image = embed_tokens(torch.tensor([config.image_token_id], device=inputs_embeds.device))
        # Up to rounding: an adapter's product rounds differently for one token than for many.
        rounding = 8 * torch.finfo(image.dtype).eps * image.abs().max()
        is_image = ((inputs_embeds - image).abs() <= rounding).all(-1)
    if attention_mask is None or attention_mask.ndim != 2:
        return is_image
    return is_image & attention_mask[:, -is_image.shape[1] :].bool()


def flatten_images(
    encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None, encoder_lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Encoder tokens as one flat (K, D) list, and the (N,) int64 length of each image.

    They come as (N, P, D), with a mask of those that count, or flat already with their lengths.
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
