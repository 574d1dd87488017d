"""The optimizer over what is trained."""

import functools
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arlow_vl.training.components import component_of, is_in_block
from arlow_vl.training.policy import Policy
from arlow_vl.training.schedule import lr_factor
from arlow_vl.training.settings import OptimConfig

GATE_LR = 10
"""Learning rate of the cross-attention gates, in those of the rest: a closed gate lets no gradient through to its
block, and AdamW would take hundreds of steps to open it."""

NO_DECAY = ("embed_tokens", "lm_head", "_embedding")
"""Ends of the names of layers whose weight does not decay."""


def is_gate(name: str) -> bool:
    return name.endswith("_gate")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for the weight matrices of layers: not for norms, biases, gates, embeddings (one is tied to the
    head), nor for what is no layer's weight: class tokens, tables of positions, latents."""
    *_, layer, kind = ("", *name.split("."))
    return parameter.ndim >= 2 and kind.endswith("weight") and not layer.endswith(NO_DECAY)


def takes_muon(name: str, parameter: nn.Parameter) -> bool:
    """Muon is for the matrices of blocks and the projector, as its authors have it: not for tables and heads."""
    return parameter.ndim == 2 and decays(name, parameter) and (is_in_block(name) or "projector" in name)


def build_optimizer(model: nn.Module, optim: OptimConfig, policy: Policy | None = None) -> Optimizer:
    """Over what has `requires_grad`; a group for each component that has a rate of its own, and of these one for what
    decays, one for what does not, and one for gates. A group's `kind` says which it is."""
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        component = component_of(name)
        part = policy[component] if policy else None
        owner = component if part and (part.lr, part.weight_decay) != (None, None) else ""
        lr = part.lr if part and part.lr is not None else optim.lr
        decay = part.weight_decay if part and part.weight_decay is not None else optim.weight_decay
        kind = ("gates",) if is_gate(name) else ("matrices",) if decays(name, parameter) else ("others",)
        muon = optim.optimizer == "muon" and takes_muon(name, parameter)
        values = {
            "kind": " ".join([owner, *kind, *["muon"] * muon]).strip(),
            "weight_decay": decay if kind == ("matrices",) else 0.0,
            "lr": GATE_LR * lr if kind == ("gates",) else lr,
        }
        groups.setdefault((owner, muon, kind), {"params": [], **values})["params"].append(parameter)
    order = {"matrices": 0, "others": 1, "gates": 2}
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1], order[item[0][2][0]]))
    with_muon = [group for (_, muon, _), group in ordered if muon]
    others = [group for (_, muon, _), group in ordered if not muon]
    if with_muon:
        return MuonAndAdamW(with_muon, others, optim)
    return build_adamw(others, optim)


def build_adamw(groups: list[dict[str, Any]], optim: OptimConfig) -> AdamW:
    """Fused AdamW, without its own way of taking scaled gradients (16-mixed): in that nobody would unscale them before
    they are measured and clipped."""
    optimizer = AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
    optimizer._step_supports_amp_scaling = False
    return optimizer


class MuonAndAdamW(Optimizer):
    """torch.optim.Muon for some groups and AdamW for the others as one optimizer, whose state is that of both."""

    def __init__(self, with_muon: list[dict[str, Any]], others: list[dict[str, Any]], optim: OptimConfig) -> None:
        parts: list[Optimizer] = [Muon(with_muon, lr=optim.lr, adjust_lr_fn="match_rms_adamw")]  # then one rate fits
        parts += [build_adamw(others, optim)] if others else []
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """One list of groups and one state: whoever changes a rate or loads a state here changes the parts."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state, start = self.param_groups[start:end], self.state, end

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss


def leave_out(optimizer: Optimizer, is_bad: Tensor) -> None:
    """Makes the next step change nothing where `is_bad` (a bool scalar on the device) holds, without reading it.

    Fused AdamW looks at it on the device, as it does for gradient scaling. Muon knows no such thing: its gradients are
    taken away, for which the host must wait.
    """
    if isinstance(optimizer, AdamW):
        optimizer.found_inf = is_bad.float()  # pyrefly: ignore[missing-attribute]
        optimizer.grad_scale = None  # pyrefly: ignore[missing-attribute]
    elif bool(is_bad):
        optimizer.zero_grad(set_to_none=True)


class Schedule(LambdaLR):
    """Rates by the step alone: loaded into a run that was made longer, the next one is that of the longer run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """To be called when the optimizer has its state, which holds the rate that the shorter run would have had."""
        super().load_state_dict(state_dict)
        factors = [factor_at(self.last_epoch) for factor_at in self.lr_lambdas]
        self._last_lr = [peak * factor for peak, factor in zip(self.base_lrs, factors, strict=True)]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def build_schedule(optimizer: Optimizer, optim: OptimConfig, max_steps: int) -> Schedule:
    return Schedule(optimizer, functools.partial(lr_factor, optim=optim, max_steps=max_steps))
