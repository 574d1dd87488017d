"""Lower bound of a run's memory, so that one that cannot fit is refused before anything is computed."""

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
"""File with the memory limit of a container in bytes, or "max"."""


def refuse_too_large(model: nn.Module, recipe: Recipe) -> None:
    """Refuses a run that cannot fit into the memory of its device. `model` may be on torch's device `meta`.

    Raises:
        ResourceError: weights, gradients, optimizer state, and a batch with one activation per token and layer, exceed
            the memory. A run takes more than these, so none is refused that would have fitted.
    """
    parts, there = least_bytes(model, recipe), memory_of(device_type_of(recipe.run.engine))
    if sum(parts.values()) <= there:
        return
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    raise ResourceError(f"the run needs more than the {_gib(there)} GiB of memory ({listed} GiB); {advice(recipe)}")


def least_bytes(model: nn.Module, recipe: Recipe) -> dict[str, int]:
    """Returns the least bytes on one device, by part (weights, gradients, optimizer, a batch ...)."""
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
    parts |= {"moving average": 4 * learnt} if recipe.optim.ema else {}  # always float32
    config: Any = model.config
    config = config.get_text_config()
    tokens = tokens_of_a_batch(recipe) // recipe.run.engine.tensor_parallel
    activations = (
        tokens * config.hidden_size * config.num_hidden_layers * (4 if recipe.run.precision == "32-true" else 2)
    )
    return {name: size // shards for name, size in parts.items()} | {"a batch": activations}


def tokens_of_a_batch(recipe: Recipe) -> int:
    """Returns the least number of tokens in a batch."""
    if isinstance(recipe, TextRecipe):
        return recipe.batch_size * recipe.row_length
    if recipe.packing:
        return recipe.packing.row_tokens * recipe.packing.rows_per_batch
    return 2 * sum(source.samples_per_batch or 0 for source in recipe.sources)


def advice(recipe: Recipe) -> str:
    """Returns the end of an error: which settings lower the memory."""
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
    """Returns the bytes of memory of the GPU, or of the machine within the limit of this container."""
    if device_type == "cuda":
        return torch.cuda.mem_get_info()[1]
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # unknown on this system
        return sys.maxsize
    try:
        return min(there, int(CGROUP.read_text()))
    except (OSError, ValueError):  # no limit
        return there


def out_of_memory(model: nn.Module, recipe: Recipe, error: BaseException) -> ResourceError:
    """Returns an error with the parts of the memory and advice, to be raised in place of torch's."""
    parts = least_bytes(model, recipe)
    held = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if name != "a batch")
    there = memory_of(device_type_of(recipe.run.engine))
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ResourceError(
        f"a step does not fit into the {_gib(there)} GiB of memory ({held} GiB, and the rest for a batch of "
        f"{tokens_of_a_batch(recipe):,} tokens or more; {first}); {advice(recipe)}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"
