"""Components and blocks of a model, by the dotted names of its parameters, buffers and modules."""

import re
from typing import Any

from torch import nn

from arlow_vl.training.policy import Component, PartPolicy, Policy
from vision.encoder import VisionEncoder

BLOCK_NUMBER = re.compile(r"(?:(?!patch_embed\.)\w+\.)*?(?:stages|layers|blocks)\.(\d+)\.")
"""Number of the outermost block in a dotted name. In an encoder with feature maps this is the stage, whose own blocks
are nested in it. The layers that make the patches are not counted as a block."""
ADAPTERS = ("lora_A", "lora_B")
"""Names that peft gives the two matrices of an adapter."""


def component_of(name: str) -> Component:
    """Returns the component of a parameter, buffer or module, given its dotted name."""
    parts = name.split(".")
    if "cross_block" in parts:
        return "cross_attention"
    if "vision" in parts:
        return "vision"
    return "projector" if "projector" in parts else "decoder"


def is_in_block(name: str) -> bool:
    """Returns True for a dotted name inside a numbered block."""
    return BLOCK_NUMBER.match(name) is not None


def is_treated(name: str, part: PartPolicy) -> bool:
    """Returns True for a dotted name in the blocks that its component's policy selects; always without `blocks`."""
    if part.blocks is None:
        return True
    found = BLOCK_NUMBER.match(name + ".")
    return found is not None and part.blocks[0] <= int(found[1]) < part.blocks[1]


def block_count(names: Any) -> int:
    """Returns the number of blocks, one more than the highest block number among these dotted parameter names."""
    return max((int(found[1]) + 1 for name in names if (found := BLOCK_NUMBER.match(name))), default=0)


def is_adapter(name: str) -> bool:
    """Returns True for the dotted name of an adapter's matrix."""
    return any(part in ADAPTERS for part in name.split("."))


def unread_names(model: nn.Module, policy: Policy) -> set[str]:
    """Returns the names of parameters of a trained encoder that no output token depends on.

    Their names are those that they have without adapters. The set is empty where the encoder is frozen.
    """
    if "vision" not in policy or not policy["vision"].is_trained:
        return set()
    encoders = [(name, module) for name, module in model.named_modules() if isinstance(module, VisionEncoder)]
    return {f"{name}.{unread}" for name, encoder in encoders for unread in encoder.unread_parameters}
