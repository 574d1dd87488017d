"""What a stage trains, as data: a policy gives each component of a model one treatment.

Frozen means: no gradient, eval mode, no optimizer state, and the same bytes at the end. So are the layers that adapters
stand beside.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from arlow_vl.models.folders import sha256_of
from arlow_vl.training.policy import COMPONENTS, Component, PartPolicy, Policy, read_policy
from arlow_vl.training.ranks import own_part, whole
from vision.encoder import VisionEncoder

BLOCK_NUMBER = re.compile(r"(?:(?!patch_embed\.)\w+\.)*?(?:stages|layers|blocks)\.(\d+)\.")
"""The outermost block that a dotted name lies in: of a feature-map net a stage, whose own blocks lie in it. No block of
the net is what makes its patches."""
ADAPTERS = ("lora_A", "lora_B")
"""What peft calls the two matrices."""


def component_of(name: str) -> Component:
    """The component that a parameter, buffer or module belongs to, by its dotted name."""
    parts = name.split(".")
    if "cross_block" in parts:
        return "cross_attention"
    if "vision" in parts:
        return "vision"
    return "projector" if "projector" in parts else "decoder"


def is_in_block(name: str) -> bool:
    return BLOCK_NUMBER.match(name) is not None


def is_treated(name: str, part: PartPolicy) -> bool:
    """Whether something of a component, by its dotted name, lies in the blocks that the policy speaks of."""
    if part.blocks is None:
        return True
    found = BLOCK_NUMBER.match(name + ".")
    return found is not None and part.blocks[0] <= int(found[1]) < part.blocks[1]


def is_trained(name: str, policy: Policy) -> bool:
    """Whether a policy trains the parameter of this dotted name, where it is read."""
    part = policy[component_of(name)]
    if part.treatment == "lora":
        return is_adapter(name)
    return part.treatment == "train" and is_treated(name, part)


def is_adapter(name: str) -> bool:
    return any(part in ADAPTERS for part in name.split("."))


def check_policy(model: nn.Module, policy: Policy) -> None:
    """Raises ValueError unless the policy treats exactly the model's components, and something of what it trains."""
    names = [name for name, _ in model.named_parameters()]
    has = {component_of(name) for name in names}
    for component in COMPONENTS:
        if component in policy and component not in has:
            raise ValueError(
                f"policy.{component} is given, but {type(model).__name__} has no such component; remove it"
            )
        if component in has and component not in policy:
            raise ValueError(f"policy says nothing about {component}; set policy.{component} to frozen or train")
    if not any(part.is_trained for part in policy.values()):
        raise ValueError("policy freezes everything, so there is nothing to train; set one component to train")
    for component, part in policy.items():
        if part.blocks is None:
            continue
        count = block_count(name for name in names if component_of(name) == component)
        if part.blocks[1] > count:
            raise ValueError(f"policy.{component}.blocks ends at {part.blocks[1]}, but there are {count} blocks")
        if not any(component_of(name) == component and is_treated(name, part) for name in names):
            raise ValueError(f"policy.{component}.blocks {list(part.blocks)} holds nothing; name blocks that have it")


def block_count(names: Any) -> int:
    """How many blocks the parameters of these dotted names lie in, counted to the last."""
    return max((int(found[1]) + 1 for name in names if (found := BLOCK_NUMBER.match(name))), default=0)


def apply_policy(model: nn.Module, words: Mapping[str, Any]) -> None:
    """Puts adapters in, sets `requires_grad` and the modes. `set_modes` must follow each later `model.train()`."""
    policy = read_policy(words)
    check_policy(model, policy)
    if any(part.treatment == "lora" for part in policy.values()):
        from arlow_vl.training.adapters import add_adapters  # which imports this module

        add_adapters(model, policy)
    trained = set(trained_names(model, policy))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    set_modes(model, policy, training=True)


def set_modes(model: nn.Module, policy: Policy, *, training: bool) -> None:
    """Frozen modules stay in eval mode: no dropout, and no batch norm statistics that move.

    A module around blocks that are trained is in training mode too: so it is told to be (see `VisionEncoder.train`).
    """
    model.train(training)
    for name, module in model.named_modules():
        part = policy[component_of(name)]
        if not part.is_trained or not (is_treated(name, part) or any(p.requires_grad for p in module.parameters())):
            module.training = False


def trained_names(model: nn.Module, policy: Policy) -> list[str]:
    """The parameters that the policy declares trained and that are read; tied ones once."""
    unread = unread_names(model, policy)
    return [name for name, _ in model.named_parameters() if is_trained(name, policy) and name not in unread]


def unread_names(model: nn.Module, policy: Policy) -> set[str]:
    """The parameters of an encoder that is not frozen, named as without adapters, that no token depends on."""
    if "vision" not in policy or not policy["vision"].is_trained:
        return set()
    encoders = [(name, module) for name, module in model.named_modules() if isinstance(module, VisionEncoder)]
    return {f"{name}.{unread}" for name, encoder in encoders for unread in encoder.unread_parameters}


def check_trainable(model: nn.Module, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """What has a gradient and what the optimizer updates must both be what the policy declares.

    Raises:
        ValueError: naming the first tensor that differs.
    """
    declared = set(trained_names(model, policy))
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        states = {
            "the policy": name in declared,
            "requires_grad": parameter.requires_grad,
            "the optimizer": id(parameter) in optimized,
        }
        if len(set(states.values())) > 1:
            says = ", ".join(f"{who} {'trains' if trains else 'freezes'} it" for who, trains in states.items())
            raise ValueError(f"{name} differs from the stage's policy: {says}")


def stays(name: str, policy: Policy) -> bool:
    """Whether a tensor of the state dict, by its dotted name, must keep its bytes.

    A buffer moves with what it lies beside: batch norm statistics in blocks that are trained, nothing beside adapters.
    """
    part = policy[component_of(name)]
    if part.treatment == "lora":
        return not is_adapter(name)
    return part.treatment == "frozen" or not is_treated(name, part)


def hash_tensors(model: nn.Module, component: Component) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, buffers included."""
    return {name: sha256_of(tensor) for name, tensor in model.state_dict().items() if component_of(name) == component}


def hash_frozen(model: nn.Module, policy: Policy) -> dict[str, str]:
    """Likewise of all that stays. Tensors in parts on several devices are gathered: all processes must call it."""
    return {name: sha256_of(whole(tensor)) for name, tensor in model.state_dict().items() if stays(name, policy)}


def hash_own_parts(model: nn.Module, policy: Policy, *, frozen: Mapping[str, str] | None = None) -> dict[str, str]:
    """Likewise of what lies here of all that stays: of whole tensors what `hash_frozen` says, taken from `frozen` where
    that was just asked."""
    known = frozen or {}
    parts = {name: (tensor, own_part(tensor)) for name, tensor in model.state_dict().items() if stays(name, policy)}
    return {
        name: known[name] if part is tensor and name in known else sha256_of(part)
        for name, (tensor, part) in parts.items()
    }


def check_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raises ValueError naming the first frozen tensor whose bytes changed."""
    for name in before:
        if before[name] != after.get(name):
            raise ValueError(
                f"{name} is frozen in this stage but its bytes changed; the run's weights are not exported"
            )
