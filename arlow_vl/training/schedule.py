"""Learning rate as a pure function of the step."""

import math

from arlow_vl.printing import number_of
from arlow_vl.training.settings import OptimConfig


def lr_factor(step: int, *, optim: OptimConfig, max_steps: int) -> float:
    """Returns the learning rate of optimizer step `step` (from 0), as a share of the peak.

    The schedules are those of transformers with the same names, except that the first step has a rate above 0 and all
    end at the floor. They need no state, so a run can be extended while its rate is constant.
    """
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    first, last = optim.warmup_steps, max_steps - 1
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "wsd":
        first = max(first, last - (optim.decay_steps or max(1, max_steps // 5)))
    progress = min(1.0, max(0, step - first) / max(1, last - first))
    if optim.schedule == "cosine":
        return optim.lr_floor + (1 - optim.lr_floor) * (1 + math.cos(math.pi * progress)) / 2
    return optim.lr_floor + (1 - optim.lr_floor) * (1 - progress)


def schedule_warnings(optim: OptimConfig, max_steps: int) -> list[str]:
    """Returns sentences on parts of the schedule that a run of so many steps does not reach."""
    warnings = []
    if optim.warmup_steps > max_steps:
        warnings.append(
            f"optim.warmup_steps is {optim.warmup_steps}, but the run has {number_of(max_steps, 'step')}: its rate "
            "stays low"
        )
    if optim.decay_steps is not None and optim.decay_steps > max_steps - optim.warmup_steps:
        warnings.append(
            f"optim.decay_steps is {optim.decay_steps}, but after warm-up the run has "
            f"{number_of(max(0, max_steps - optim.warmup_steps), 'step')}: the rate is never constant"
        )
    return warnings
