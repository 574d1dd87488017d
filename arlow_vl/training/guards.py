"""What keeps one bad batch from spoiling a run."""

from typing import Any

import torch
from torch import Tensor

REMEMBERED = 0.98
"""Decay of the mean of gradient norms: that of the last fifty steps, about."""
LEARNT_AFTER = 20
"""Steps before which nothing is a spike."""
MOST_IN_A_ROW = 3
"""Spikes after which long gradients count as how things are now."""


class SpikeGuard:
    """Finds gradients that are much longer than the last ones, on the device, without reading anything from it.

    What is not finite goes into no mean, and neither do spikes. But when long gradients go on they count, until one
    comes that is not long: so a run whose gradients have become longer goes on, and loses three steps.
    """

    def __init__(self, times: float | None) -> None:
        self.times = times
        self.state = {"mean": torch.zeros(()), "seen": torch.zeros(()), "in_a_row": torch.zeros(())}

    def look(self, norm: Tensor, *, is_bad: Tensor) -> Tensor:
        """Whether a gradient of this norm (a scalar) is one, bool scalar."""
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
