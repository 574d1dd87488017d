"""Optimizer and learning-rate schedule of a run."""

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
"""Factor on the learning rate of the cross-attention gates: a closed gate passes no gradient to its block, and AdamW
would need hundreds of steps to open it."""

NO_DECAY = ("embed_tokens", "lm_head", "_embedding")
"""Endings of the names of layers without weight decay."""


def is_gate(name: str) -> bool:
    """Returns True for the name of a cross-attention gate."""
    return name.endswith("_gate")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Returns True for the weight matrices of layers, which alone have weight decay.

    Norms, biases, gates and embeddings (one is tied to the head) have none, nor have class tokens, position tables and
    latents.
    """
    *_, layer, kind = ("", *name.split("."))
    return parameter.ndim >= 2 and kind.endswith("weight") and not layer.endswith(NO_DECAY)


def takes_muon(name: str, parameter: nn.Parameter) -> bool:
    """Returns True for matrices of blocks and the projector; Muon's authors leave out embeddings and heads."""
    return parameter.ndim == 2 and decays(name, parameter) and (is_in_block(name) or "projector" in name)


def moments_of(name: str, parameter: nn.Parameter, optim: OptimConfig) -> int:
    """Returns the number of moments that the optimizer keeps of a parameter: 1 for Muon, else 2."""
    return 1 if optim.optimizer == "muon" and takes_muon(name, parameter) else 2


def build_optimizer(model: nn.Module, optim: OptimConfig, policy: Policy | None = None) -> Optimizer:
    """Builds the optimizer over all parameters with `requires_grad`.

    Each component with its own learning rate or decay, and the rest, has a group for matrices that decay, one for
    other parameters and one for gates. The `kind` of a group names it.
    """
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
    """Builds fused AdamW that leaves the unscaling of gradients (16-mixed) to Lightning.

    With AdamW's own unscaling, gradients would still be scaled when they are measured and clipped.
    """
    optimizer = AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
    optimizer._step_supports_amp_scaling = False
    return optimizer


class MuonAndAdamW(Optimizer):
    """Muon for some groups and AdamW for the others, as one optimizer with one state."""

    def __init__(self, with_muon: list[dict[str, Any]], others: list[dict[str, Any]], optim: OptimConfig) -> None:
        parts: list[Optimizer] = [Muon(with_muon, lr=optim.lr, adjust_lr_fn="match_rms_adamw")]  # one rate suits both
        parts += [build_adamw(others, optim)] if others else []
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Lets both optimizers use the groups and state of this one, so that a changed rate or state reaches them."""
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

    Fused AdamW checks it on the device, as it does for gradient scaling. Muon cannot, so the host waits for the value
    and removes the gradients.
    """
    if isinstance(optimizer, AdamW):
        optimizer.found_inf = is_bad.float()  # pyrefly: ignore[missing-attribute]
        optimizer.grad_scale = None  # pyrefly: ignore[missing-attribute]
    elif bool(is_bad):
        optimizer.zero_grad(set_to_none=True)


class Schedule(LambdaLR):
    """Schedule whose rates depend on the step alone, so that an extended run resumes with those of the longer run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the rates of the next step. Call it after loading the optimizer, whose state has the old run's."""
        super().load_state_dict(state_dict)
        factors = [factor_at(self.last_epoch) for factor_at in self.lr_lambdas]
        self._last_lr = [peak * factor for peak, factor in zip(self.base_lrs, factors, strict=True)]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def build_schedule(optimizer: Optimizer, optim: OptimConfig, max_steps: int) -> Schedule:
    return Schedule(optimizer, functools.partial(lr_factor, optim=optim, max_steps=max_steps))
