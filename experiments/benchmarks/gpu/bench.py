"""Tools of a section: the device, the time it may take, and the rates that everything is quoted against."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from arlow_vl.training.compiling import compile_blocks
from arlow_vl.training.sizes import fields_of_size
from experiments.benchmarks.decoder import SHAPE, TOY_SHAPE
from experiments.benchmarks.measure import Timings, alternate

DATASHEET = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
"""Dense bf16 FLOP/s and bytes/s of memory."""
GEMM, TOY_GEMM = 8192, 256
COPIED, TOY_COPIED = 2**30, 2**20
"""Bytes of the tensor whose copy tells the bandwidth."""
VOCAB = 32768


@dataclass(frozen=True)
class Figure:
    """A number, what was expected of it, and what it should be."""

    measure: str
    value: float
    unit: str
    predicted: float | None = None
    goal: float | None = None
    is_most: bool = False
    """The goal is the most that the value may be, not the least."""
    note: str = ""

    @property
    def falls_short(self) -> bool:
        if self.goal is None:
            return False
        return self.value > self.goal if self.is_most else not self.value >= self.goal


@dataclass(frozen=True)
class Bench:
    """The device of a section; at toy size a CPU will do, and figures say nothing."""

    device: str
    toy: bool
    ends: float
    """When the section must be over, on the monotonic clock."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    @property
    def rounds(self) -> int:
        return 1 if self.toy else 10

    def has(self, seconds: float) -> bool:
        """Returns True if that many seconds are left."""
        return self.toy or time.monotonic() + seconds < self.ends

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _run(self, run: Callable[[], object]) -> None:
        run()
        self.synchronise()

    def timed(self, cases: Mapping[str, Callable[[], object]], warmup: int = 3, rounds: int | None = None) -> Timings:
        """The cases in turn, each until the device has done it."""
        waiting = {name: partial(self._run, run) for name, run in cases.items()}
        return alternate(waiting, rounds or self.rounds, warmup=1 if self.toy else warmup)

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Memory of the device over what is held before; 0 where a CPU stands in for it."""
        if self.device == "cpu":
            run()
            return 0
        self.synchronise()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._run(run)
        return torch.cuda.max_memory_allocated() - before

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.device == "cuda" else "cpu"

    @cached_property
    def matmul(self) -> float:
        """FLOP/s of a large product, measured now: the best of twenty."""
        n = TOY_GEMM if self.toy else GEMM
        left, right = (torch.randn(n, n, device=self.device, dtype=self.dtype) for _ in range(2))
        timings = self.timed({"product": lambda: left @ right}, rounds=3 if self.toy else 20)
        return 2 * n**3 / min(timings.seconds["product"])

    @cached_property
    def bandwidth(self) -> float:
        """Bytes/s, read and written, of a large copy, measured now."""
        source = torch.empty(TOY_COPIED if self.toy else COPIED, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        timings = self.timed({"copy": lambda: target.copy_(source)}, rounds=3 if self.toy else 20)
        return 2 * source.numel() / min(timings.seconds["copy"])

    @property
    def datasheet(self) -> tuple[float, float]:
        """Rates that utilisation is a share of: the card's, or the measured ones for an unknown card."""
        known = (rates for card, rates in DATASHEET.items() if card in self.name)
        return next(known, (self.matmul, self.bandwidth))

    def shape(self, size: str) -> dict[str, Any]:
        """Fields that Arlow's, Llama's and Mllama's configurations share, of one of `training.sizes`."""
        if self.toy:
            return TOY_SHAPE
        fields = {name: value for name, value in fields_of_size(size).items() if name in SHAPE}
        return SHAPE | fields | {"vocab_size": VOCAB}

    def make(self, build: Callable[[], Any]) -> Any:
        """A model whose random weights are drawn on the device: on the host that takes longer than measuring it."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = build()
        return model.to(self.device, self.dtype)

    def compile(self, blocks: Iterable[nn.Module]) -> None:
        """Each by itself, as `arlow fit` does it; shapes are fixed, so nothing may be compiled twice."""
        compile_blocks(blocks, dynamic=False, backend="eager" if self.toy else "inductor")


def graphs() -> int:
    """Returns the number of graphs that torch's compiler has made so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
