"""Low-rank adapters (LoRA, arXiv:2106.09685) from peft, added to linear layers and merged into them at the end."""

from typing import Any

import torch
from torch import nn

from arlow_vl.training.components import component_of, is_treated, unread_names
from arlow_vl.training.policy import Component, PartPolicy, Policy

RANK = 16


def add_adapters(model: nn.Module, policy: Policy) -> None:
    """Adds adapters, in place, to the components that the policy treats with lora; the outputs do not change yet.

    Raises:
        ValueError: peft is not installed, the rank is too large, or no linear layer has a name in `targets`.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise ValueError("policy: lora needs peft; install it with pip install 'arlow-vl[peft]'") from error
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for component, part in policy.items():
        if part.treatment != "lora":
            continue
        rank = part.rank or RANK
        names = _targets(model, component, part)
        widest = max(min(model.get_submodule(name).weight.shape) for name in names)
        if rank > widest:
            raise ValueError(
                f"policy.{component}.rank is {rank}, but its matrices have a rank of {widest} at most; lower it"
            )
        for name in names:
            ranks[name], alphas[name] = rank, part.alpha or 2 * rank
    settings: Any = {"target_modules": list(ranks), "rank_pattern": _whole(ranks), "alpha_pattern": _whole(alphas)}
    LoraModel(model, LoraConfig(**settings), "default")


def merge_adapters(model: nn.Module) -> None:
    """Merges the adapters into the weights of their layers and removes them, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    with torch.no_grad():
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()  # pyrefly: ignore[not-callable]
                model.set_submodule(name, module.get_base_layer())


def _targets(model: nn.Module, component: Component, part: PartPolicy) -> list[str]:
    unread = unread_names(model, {component: part})
    linear = {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and component_of(name) == component and is_treated(name, part)
        if f"{name}.weight" not in unread
    }
    linear.pop("lm_head", None)  # tied to the embedding, so not a matrix of its own
    for target in part.targets or ():
        if target not in linear.values():
            known = ", ".join(dict.fromkeys(linear.values())) or "none"
            raise ValueError(f"policy.{component}.targets: no linear layer is called {target}; there are {known}")
    found = [name for name, last in linear.items() if part.targets is None or last in part.targets]
    if not found:
        raise ValueError(f"policy.{component} is lora, but it has no linear layer there; use frozen or train")
    return found


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values under patterns that match whole names, as peft matches plain names with ends of names too."""
    return {f"^{name.replace('.', chr(92) + '.')}$": value for name, value in values.items()}
