# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Runs of consecutive entries, and dataclasses of tensors that move to a device."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Movable:
    """A frozen dataclass of tensors that moves to a device together with its cached properties."""

    def to(self, device: torch.device | str):
        """A copy on the device, made without waiting for it."""
        # Not by __init__: cached properties are no fields, and computing them again would wait for the device.
        moved = object.__new__(type(self))
        vars(moved).update({name: _moved(value, torch.device(device)) for name, value in vars(self).items()})
        return moved


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, Movable):
        return value.to(device)
    if isinstance(value, list):
        return [_moved(entry, device) for entry in value]
    return value


@dataclass(frozen=True)
class Runs(Movable):
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

    def ready(self) -> None:
        """Computes and caches what `pad`, `unpad` and `padding_mask` need."""
        _ = self.padding_mask
        if self.is_ragged:
            _ = self.slots

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
        """The runs of these numbers: their entries, (entries,) int64, and the runs over those entries alone."""
        # An entry keeps its place within its run; a run's first one moves from the old offset to the new.
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
class PaddedRuns(Movable):
    """Runs of text and of encoder tokens that are padded together."""

    query_index: Tensor | None
    """(entries,) int64: the entries of these runs among all; None: all of them."""
    query_runs: Runs
    """The runs over those entries alone."""
    key_index: Tensor | None
    key_runs: Runs
