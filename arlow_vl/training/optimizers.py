"""AdamW over the trained parameters, and the learning rate as a pure function of the step."""

import functools
import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from arlow_vl.training.recipe import OptimConfig

GATE_LR = 10
"""Learning rate of the cross-attention gates, in those of the rest: a closed gate lets no gradient through to its
block, and AdamW would take hundreds of steps to open it."""


def is_gate(name: str) -> bool:
    return name.endswith("_gate")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices: not for norms, biases, gates, nor the embedding (tied to the head)."""
    return parameter.ndim >= 2 and not any(part in name for part in ("embed_tokens", "lm_head", "pos_embed"))


def build_optimizer(model: nn.Module, optim: OptimConfig) -> AdamW:
    """AdamW over what has `requires_grad`, in three groups: with weight decay, without, and the gates."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gates = [p for name, p in trained if is_gate(name)]
    others = [(name, p) for name, p in trained if not is_gate(name)]
    groups = [
        {"params": [p for name, p in others if decays(name, p)], "weight_decay": optim.weight_decay},
        {"params": [p for name, p in others if not decays(name, p)], "weight_decay": 0.0},
        {"params": gates, "weight_decay": 0.0, "lr": GATE_LR * optim.lr},
    ]
    return AdamW([group for group in groups if group["params"]], lr=optim.lr, betas=optim.betas, fused=True)


def build_schedule(optimizer: AdamW, optim: OptimConfig, max_steps: int) -> LambdaLR:
    return LambdaLR(optimizer, functools.partial(lr_factor, optim=optim, max_steps=max_steps))


def lr_factor(step: int, *, optim: OptimConfig, max_steps: int) -> float:
    """Share of the peak rate at optimizer step `step` (from 0): linear warm-up, then a cosine down to `lr_floor`."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    progress = min(1.0, (step - optim.warmup_steps) / max(1, max_steps - 1 - optim.warmup_steps))
    return optim.lr_floor + (1 - optim.lr_floor) * (1 + math.cos(math.pi * progress)) / 2
