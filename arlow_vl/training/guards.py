"""Detection of gradient spikes, so that a single bad batch does not spoil a run."""

from typing import Any

import torch
from torch import Tensor

REMEMBERED = 0.98
"""Decay of the running mean of gradient norms, which covers about fifty steps."""
LEARNT_AFTER = 20
"""Steps at the start of a run in which nothing counts as a spike."""
MOST_IN_A_ROW = 3
"""Spikes in a row after which large gradients count as normal."""


class SpikeGuard:
    """Finds gradients whose norm is much larger than the recent mean, without waiting for the device.

    Spikes and norms that are not finite do not enter the mean. After `MOST_IN_A_ROW` spikes in a row, large norms do
    enter it until a normal one comes, so a run whose gradients stay larger continues and loses three steps only.
    """

    def __init__(self, times: float | None) -> None:
        self.times = times
        self.state = {"mean": torch.zeros(()), "seen": torch.zeros(()), "in_a_row": torch.zeros(())}

    def look(self, norm: Tensor, *, is_bad: Tensor) -> Tensor:
        """Returns a bool scalar on the device: True if a gradient of this norm (a scalar) is a spike.

        `is_bad` is True where the loss or the gradient of the step is not finite.
        """
        if self.times is None:
            return torch.zeros_like(is_bad)
        mean, seen, in_a_row = (self.state[name].to(norm.device) for name in ("mean", "seen", "in_a_row"))
        known = mean / (1 - REMEMBERED ** seen.clamp(min=1))  # as Adam's moments are corrected for their beginning
        is_long = (seen >= LEARNT_AFTER) & (norm > self.times * known) & ~is_bad
        is_spike = is_long & (in_a_row < MOST_IN_A_ROW)
        counts = ~(is_bad | is_spike)
        self.state = {
            "mean": torch.where(counts, REMEMBERED * mean + (1 - REMEMBERED) * norm, mean),
            "seen": seen + counts,
            "in_a_row": torch.where(is_bad, in_a_row, torch.where(is_long, in_a_row + 1, 0 * in_a_row)),
        }
        return is_spike

    def state_dict(self) -> dict[str, Any]:
        return {name: value.item() for name, value in self.state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = {name: torch.tensor(float(value)) for name, value in state.items()}
