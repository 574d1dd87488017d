"""Results of optimizer steps, kept on the device and read from it several steps at a time, so that no step waits."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from arlow_vl.errors import DivergenceError
from arlow_vl.printing import print_line
from arlow_vl.training.operations import Counts, Operations, operations_of, pairs_of
from arlow_vl.training.ranks import gathered, summed, world_size
from arlow_vl.training.speed import WaitingForData, matmul_peak, memory_gib

COMPUTE_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
"""Compute dtype by the first part of Lightning's name of a precision."""
MOST_BAD_IN_A_ROW = 3
"""Consecutive non-finite steps after which a run ends."""


@dataclass
class StepRecord:
    """Results of one optimizer step; tensors stay on the device until they are read."""

    losses: list[Tensor] = field(default_factory=list)
    """Mean loss over the labels of each batch."""
    labels: list[int] = field(default_factory=list)
    """Number of labels that count in each batch."""
    batch_keys: list[list[str]] = field(default_factory=list)
    """Sample keys of each batch of this process."""
    counts: Counts = field(default_factory=Counts)
    """Content of this process's batches."""
    pairs: list[Tensor] = field(default_factory=list)
    """Pairs of tokens in self-attention in each batch."""
    totals: Tensor | None = None
    """Sums of losses, labels, tokens and images over all processes, a float64 vector; None with one process."""
    lr: float = 0.0
    grad_norms: dict[str, Tensor] = field(default_factory=dict)
    """Norms of the gradient before clipping: of the whole under "", and of each component."""
    is_skipped: bool = False
    """True if the recipe skips the step."""
    is_bad: Tensor | None = None
    """True if the step is left out as its loss or gradient is not finite."""
    is_overflow: Tensor | None = None
    """True if only the scaled gradient (16-mixed) is not finite, so that the next scale is half of it."""
    is_spike: Tensor | None = None
    """True if the step is left out as its gradient is much larger than those before."""

    @property
    def tokens(self) -> int:
        return self.counts.tokens

    @property
    def images(self) -> int:
        return self.counts.images

    @property
    def loss(self) -> Tensor:
        """Mean over the labels of all batches."""
        if self.totals is not None:
            return self.totals[0] / self.totals[1].clamp(min=1)
        if len(self.losses) == 1:
            return self.losses[0]
        weighted = [loss * labels for loss, labels in zip(self.losses, self.labels, strict=True)]
        return torch.stack(weighted).sum() / max(1, sum(self.labels))

    def add(self, loss: Tensor, labels: int, batch: Mapping[str, Any]) -> None:
        self.losses.append(loss)
        self.labels.append(labels)
        self.batch_keys.append(batch["keys"])
        self.counts.add(batch, labels)
        if (pairs := pairs_of(batch)) is not None:
            self.pairs.append(pairs)

    def sum_over_ranks(self, tensor_parallel: int) -> None:
        """Sets `totals` by one small reduction on the device; a tensor-parallel group's batches count once."""
        device = self.losses[0].device
        weighted = [loss.double() * labels for loss, labels in zip(self.losses, self.labels, strict=True)]
        counts = torch.tensor([sum(self.labels), self.tokens, self.images], dtype=torch.float64, device=device)
        own = torch.cat([torch.stack(weighted).sum(0, keepdim=True), counts])
        self.totals = summed(own) / tensor_parallel


@dataclass(frozen=True)
class Reading:
    """Results of one step for the logs, as plain numbers."""

    step: int
    """Counted from 1."""
    loss: float
    lr: float
    grad_norm: float
    component_norms: dict[str, float]
    tokens: int
    images: int
    keys: list[str]
    seconds: float
    """Duration of the step, the mean over those that were read together."""
    operations: float | None = None
    """Operations that the model needs for the step, on all processes; None if unknown."""
    mfu: float | None = None
    """Operations per second, as a share of those of a large matrix product on each device."""
    data_wait: float | None = None
    """Share of the time spent waiting for data."""
    memory_gib: float | None = None
    """Peak memory of this process so far."""
    left_out: str = ""
    """Reason why the step changed nothing: "skipped", "non-finite", "overflow" or "spike"; empty if it counted."""

    @property
    def is_skipped(self) -> bool:
        """Nothing was computed: its loss of 0 is none."""
        return self.left_out == "skipped"


def step_ends(trainer: Trainer, batch_idx: int) -> bool:
    """Returns True if this batch completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


@runtime_checkable
class Listener(Protocol):
    """Log that receives the readings."""

    def step_read(self, reading: Reading) -> None: ...


class Readings(Callback):
    """Reads the results of steps every `every` steps and before each checkpoint and validation, for the listeners.

    Raises:
        DivergenceError: `MOST_BAD_IN_A_ROW` steps in a row were not finite.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        every: int,
        waiting: WaitingForData | None = None,
        tensor_parallel: int = 1,
    ) -> None:
        self.listeners = listeners
        self.every = every
        self.tensor_parallel = tensor_parallel
        self.waiting_for_data = waiting or WaitingForData()
        self.operations: Operations | None = None
        self.peak: float | None = None
        self.waiting: list[tuple[int, StepRecord]] = []
        self.bad_in_a_row = 0
        self.left_out = {"skipped": 0, "non-finite": 0, "overflow": 0, "spike": 0}
        self.since = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"left_out": dict(self.left_out), "bad_in_a_row": self.bad_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.left_out |= state_dict["left_out"]  # earlier versions had fewer reasons
        self.bad_in_a_row = state_dict["bad_in_a_row"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.operations = operations_of(pl_module.model)
        self.device = pl_module.device
        self.peak = matmul_peak(self.device, COMPUTE_DTYPES[pl_module.recipe.run.precision.partition("-")[0]])
        self.go_on()

    def go_on(self) -> None:
        """Restarts the clock, so that the time since the last step does not count for the next one."""
        self.since = time.monotonic()
        self.waiting_for_data.take()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if step_ends(trainer, batch_idx):
            self.waiting.append((trainer.global_step, pl_module.record))
            if trainer.global_step % self.every == 0:
                self.read()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.read()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.go_on()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.read()
        if listed := ", ".join(f"{count:,} {why}" for why, count in self.left_out.items() if count):
            print_line(f"steps that were left out: {listed}; steps.jsonl names their samples", file=sys.stderr)

    def read(self) -> None:
        """Waits for the device once, reads all steps since the last call, and passes them to the listeners."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        noted = [_numbers(record) for _, record in waiting]
        numbers = torch.stack([number for some in noted for number in some]).cpu()
        values = [some.tolist() for some in numbers.split([len(some) for some in noted])]
        now = time.monotonic()  # the device has done these steps
        seconds, self.since = max((now - self.since) / len(waiting), 1e-9), now
        keys = keys_of_all([record.batch_keys for _, record in waiting], self.tensor_parallel)
        shared = {
            "seconds": seconds,
            "data_wait": min(1.0, self.waiting_for_data.take() / (seconds * len(waiting))),
            "memory_gib": memory_gib(self.device),
        }
        needed = self._operations([record for _, record in waiting], [pairs for _, pairs, *_ in values])
        for (step, record), some, operations, samples in zip(waiting, values, needed, keys, strict=True):
            mfu = self.peak and operations and operations / seconds / (self.peak * world_size())
            reading = _reading(step, record, some, shared | {"operations": operations, "mfu": mfu}, samples)
            for listener in self.listeners:
                listener.step_read(reading)
            self._count(reading)

    def _operations(self, records: Sequence[StepRecord], pairs: Sequence[float]) -> list[float | None]:
        """Returns the operations of each step on all processes; None for a skipped one.

        `pairs` are the token pairs in self-attention on this process. A tensor-parallel group's batches count once.
        """
        if self.operations is None:
            return [None] * len(records)
        own = [[*astuple(record.counts), some] for record, some in zip(records, pairs, strict=True)]
        of_all = (summed(torch.tensor(own, dtype=torch.float64)) / self.tensor_parallel).tolist()
        needed = [self.operations.of(Counts(*map(round, counts)), some) for *counts, some in of_all]
        return [None if record.is_skipped else some for record, some in zip(records, needed, strict=True)]

    def _count(self, reading: Reading) -> None:
        if reading.left_out:
            self.left_out[reading.left_out] += 1
        self.bad_in_a_row = self.bad_in_a_row + 1 if reading.left_out == "non-finite" else 0
        if self.bad_in_a_row < MOST_BAD_IN_A_ROW:
            return
        loss_is_bad = not math.isfinite(reading.loss)
        what, value = ("loss", reading.loss) if loss_is_bad else ("gradient norm", reading.grad_norm)
        more = f" and {len(reading.keys) - 4} more" if len(reading.keys) > 4 else ""
        raise DivergenceError(
            f"{what} is {value} at step {reading.step}, not finite for {self.bad_in_a_row} steps in a row, "
            f"samples {', '.join(reading.keys[:4])}{more}; these weights were not saved"
        )


def _numbers(record: StepRecord) -> list[Tensor]:
    never = torch.zeros((), dtype=torch.float64)
    flags = [never if flag is None else flag for flag in (record.is_bad, record.is_overflow, record.is_spike)]
    pairs = sum(record.pairs, start=never.long())
    counts = () if record.totals is None else record.totals[2:]
    parts = [record.loss, pairs, *flags, *counts, *record.grad_norms.values()]
    return [part.detach().to(record.loss.device, torch.float64) for part in parts]


def _reading(
    step: int, record: StepRecord, numbers: list[float], speeds: Mapping[str, Any], keys: list[str]
) -> Reading:
    loss, _, is_bad, is_overflow, is_spike, *rest = numbers
    tokens, images = record.tokens, record.images
    if record.totals is not None:
        tokens, images, *rest = round(rest[0]), round(rest[1]), *rest[2:]
    components = dict(zip(record.grad_norms, rest, strict=True))
    reasons = {"skipped": record.is_skipped, "overflow": is_overflow, "non-finite": is_bad, "spike": is_spike}
    return Reading(
        step=step,
        loss=loss,
        lr=record.lr,
        grad_norm=components.pop("", 0.0),
        component_norms=components,
        tokens=tokens,
        images=images,
        keys=keys,
        **speeds,
        left_out=next((why for why, holds in reasons.items() if holds), ""),
    )


def keys_of_all(own: list[list[list[str]]], tensor_parallel: int) -> list[list[str]]:
    """Returns the sample keys of each step on all processes, given those of this process by step and batch.

    They are in the order of the run's batches, which the data ranks read in turn: the same for any number of ranks.
    """
    of_ranks = gathered(own)[::tensor_parallel]
    return [
        [key for batches in zip(*of_step, strict=True) for keys in batches for key in keys]
        for of_step in zip(*of_ranks, strict=True)
    ]
