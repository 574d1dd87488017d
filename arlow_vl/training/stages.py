"""What a stage trains, as data: a policy gives each component of a model one treatment.

Frozen means: no gradient, eval mode, no optimizer state, and the same bytes at the end.
"""

from collections.abc import Mapping
from typing import get_args

import torch
from torch import nn

from arlow_vl.models.folders import sha256_of
from arlow_vl.training.recipe import Component, check_policy_words

Policy = Mapping[str, str]  # component -> treatment, words of `recipe`


def component_of(name: str) -> Component:
    """The component that a parameter, buffer or module belongs to, by its dotted name."""
    parts = name.split(".")
    if "cross_block" in parts:
        return "cross_attention"
    if "vision" in parts:
        return "vision"
    return "projector" if "projector" in parts else "decoder"


def check_policy(model: nn.Module, policy: Policy) -> None:
    """Raises ValueError unless the policy treats exactly the model's components."""
    check_policy_words(policy)
    has = {component_of(name) for name, _ in model.named_parameters()}
    for component in get_args(Component):
        if component in policy and component not in has:
            raise ValueError(
                f"policy.{component} is given, but {type(model).__name__} has no such component; remove it"
            )
        if component in has and component not in policy:
            raise ValueError(f"policy says nothing about {component}; set policy.{component} to frozen or train")
    if "train" not in policy.values():
        raise ValueError("policy freezes everything, so there is nothing to train; set one component to train")


def apply_policy(model: nn.Module, policy: Policy) -> None:
    """Sets `requires_grad` and the modes. `set_modes` must follow each later `model.train()`."""
    check_policy(model, policy)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(policy[component_of(name)] == "train")
    set_modes(model, policy, training=True)


def set_modes(model: nn.Module, policy: Policy, *, training: bool) -> None:
    """Frozen modules stay in eval mode: no dropout, and no batch norm statistics that move."""
    for name, module in model.named_modules():
        module.training = training and policy[component_of(name)] == "train"


def trained_names(model: nn.Module, policy: Policy) -> list[str]:
    """The parameters that the policy declares trained; tied ones once."""
    return [name for name, _ in model.named_parameters() if policy[component_of(name)] == "train"]


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


def hash_tensors(model: nn.Module, component: Component) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, buffers included."""
    return {name: sha256_of(tensor) for name, tensor in model.state_dict().items() if component_of(name) == component}


def hash_frozen(model: nn.Module, policy: Policy) -> dict[str, str]:
    """`hash_tensors` of all frozen components."""
    frozen = [component for component, treatment in policy.items() if treatment == "frozen"]
    return {name: digest for component in frozen for name, digest in hash_tensors(model, component).items()}


def check_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raises ValueError naming the first frozen tensor whose bytes changed."""
    for name in before:
        if before[name] != after.get(name):
            raise ValueError(
                f"{name} is frozen in this stage but its bytes changed; the run's weights are not exported"
            )
