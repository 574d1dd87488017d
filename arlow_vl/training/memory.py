"""What a run takes of a device's memory, at the least: one that cannot fit is refused before anything is computed."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arlow_vl.errors import ResourceError
from arlow_vl.training.optimizers import moments_of
from arlow_vl.training.policy import read_policy
from arlow_vl.training.recipe import Recipe, TextRecipe
from arlow_vl.training.stages import check_policy, trained_names
from arlow_vl.training.strategies import device_type_of

CGROUP = Path("/sys/fs/cgroup/memory.max")
"""Bytes that a container may take, or "max"."""


def refuse_too_large(model: nn.Module, recipe: Recipe) -> None:
    """`model` may be without weights, on torch's device `meta`.

    Raises:
        ResourceError: its weights, gradients and moments, or the batch with one activation a token and layer, take more
            than there is. Both are less than a run takes, so that nothing is refused that would have fitted.
    """
    parts, there = least_bytes(model, recipe), memory_of(device_type_of(recipe.run.engine))
    if sum(parts.values()) <= there:
        return
    told = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    raise ResourceError(f"the run needs more than the {_gib(there)} GiB that there are ({told} GiB); {advice(recipe)}")


def least_bytes(model: nn.Module, recipe: Recipe) -> dict[str, int]:
    """By part, of one device."""
    policy, shards = read_policy(recipe.policy), 1
    check_policy(model, policy)
    if recipe.run.engine.strategy == "fsdp":
        shards = recipe.run.engine.world_size // recipe.run.engine.replicas
    element = 2 if recipe.run.precision == "bf16-true" else 4
    weights = sum(p.numel() for p in model.parameters()) * element
    parameters = dict(model.named_parameters())
    trained = {name: parameters[name] for name in trained_names(model, policy)}
    learnt = sum(parameter.numel() for parameter in trained.values())
    moments = sum(moments_of(name, parameter, recipe.optim) * parameter.numel() for name, parameter in trained.items())
    parts = {"weights": weights, "gradients": learnt * element, "optimizer": moments * element}
    parts |= {"moving average": 4 * learnt} if recipe.optim.ema else {}  # in float32 always
    config: Any = model.config
    config = config.get_text_config()
    tokens = tokens_of_a_batch(recipe) // recipe.run.engine.tensor_parallel
    activations = (
        tokens * config.hidden_size * config.num_hidden_layers * (4 if recipe.run.precision == "32-true" else 2)
    )
    return {name: size // shards for name, size in parts.items()} | {"a batch": activations}


def tokens_of_a_batch(recipe: Recipe) -> int:
    """At the least."""
    if isinstance(recipe, TextRecipe):
        return recipe.batch_size * recipe.row_length
    if recipe.packing:
        return recipe.packing.row_tokens * recipe.packing.rows_per_batch
    return 2 * sum(source.samples_per_batch or 0 for source in recipe.sources)


def advice(recipe: Recipe) -> str:
    """What to change."""
    if isinstance(recipe, TextRecipe):
        batch = "batch_size"
    else:
        batch = "packing.rows_per_batch" if recipe.packing else "samples_per_batch of the sources"
    more = "" if recipe.run.gradient_checkpointing else ", set run.gradient_checkpointing to true"
    return (
        f"lower {batch} (and raise run.accumulate_grad_batches, for the same step){more}, take a smaller model, or "
        "more devices with run.engine.strategy fsdp"
    )


def memory_of(device_type: str) -> int:
    """Bytes of the GPU, or of the machine as far as this process may have them."""
    if device_type == "cuda":
        return torch.cuda.mem_get_info()[1]
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that does not tell
        return sys.maxsize
    try:
        return min(there, int(CGROUP.read_text()))
    except (OSError, ValueError):  # none, or "max"
        return there


def out_of_memory(model: nn.Module, recipe: Recipe, error: BaseException) -> ResourceError:
    """The sentence for people, in place of that error."""
    parts = least_bytes(model, recipe)
    held = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if name != "a batch")
    there = memory_of(device_type_of(recipe.run.engine))
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ResourceError(
        f"a step does not fit into the {_gib(there)} GiB of memory ({held} GiB, the rest is of the batch, of "
        f"{tokens_of_a_batch(recipe):,} tokens or more; {first}); {advice(recipe)}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"
