"""Application of a stage's policy, which gives each component of a model one treatment: frozen, train or lora.

Frozen means no gradient, eval mode, no optimizer state, and the same bytes at the end. This also holds for the layers
that get adapters.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from arlow_vl.models.folder_hashes import sha256_of
from arlow_vl.training.adapters import add_adapters
from arlow_vl.training.components import block_count, component_of, is_adapter, is_treated, unread_names
from arlow_vl.training.policy import COMPONENTS, Policy, read_policy
from arlow_vl.training.ranks import own_part, whole


def is_trained(name: str, policy: Policy) -> bool:
    """Returns True if the policy trains the parameter with this dotted name; `unread_names` are not left out here."""
    part = policy[component_of(name)]
    if part.treatment == "lora":
        return is_adapter(name)
    return part.treatment == "train" and is_treated(name, part)


def check_policy(model: nn.Module, policy: Policy) -> None:
    """Raises ValueError unless the policy names exactly the model's components, and trains something that exists."""
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
            raise ValueError(
                f"policy.{component}.blocks {list(part.blocks)} holds nothing of {component}; name blocks that have it"
            )


def apply_policy(model: nn.Module, words: Mapping[str, Any]) -> None:
    """Adds adapters and sets `requires_grad` and modes, in place. Call `set_modes` after each later `model.train()`."""
    policy = read_policy(words)
    check_policy(model, policy)
    if any(part.treatment == "lora" for part in policy.values()):
        add_adapters(model, policy)
    trained = set(trained_names(model, policy))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    set_modes(model, policy, training=True)


def set_modes(model: nn.Module, policy: Policy, *, training: bool) -> None:
    """Sets the mode of every module; frozen ones are always in eval mode: no dropout, fixed batch norm statistics.

    A module around trained blocks keeps the mode that its own `train` gave it (see `VisionEncoder.train`).
    """
    model.train(training)
    for name, module in model.named_modules():
        part = policy[component_of(name)]
        if not part.is_trained or not (is_treated(name, part) or any(p.requires_grad for p in module.parameters())):
            module.training = False


def trained_names(model: nn.Module, policy: Policy) -> list[str]:
    """Returns the names of the parameters that the policy trains, without `unread_names`; tied ones once."""
    unread = unread_names(model, policy)
    return [name for name, _ in model.named_parameters() if is_trained(name, policy) and name not in unread]


def check_trainable(model: nn.Module, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Checks that `requires_grad` and the optimizer's parameters both agree with the policy.

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
    """Returns True if the tensor with this name in the state dict must keep its bytes.

    Buffers follow the parameters of their module: batch norm statistics may change in trained blocks, but not
    where only adapters are trained.
    """
    part = policy[component_of(name)]
    if part.treatment == "lora":
        return not is_adapter(name)
    return part.treatment == "frozen" or not is_treated(name, part)


def hash_frozen(model: nn.Module, policy: Policy) -> dict[str, str]:
    """Returns the SHA-256 of each tensor that `stays`, buffers included, by name.

    Sharded tensors are gathered first, so all processes must call it.
    """
    return {name: sha256_of(whole(tensor)) for name, tensor in model.state_dict().items() if stays(name, policy)}


def hash_own_parts(model: nn.Module, policy: Policy, *, frozen: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the SHA-256 of this process's shard of each tensor that `stays`, by name.

    The hash of an unsharded tensor is that of `hash_frozen`. Pass its result as `frozen` to reuse it.
    """
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
