"""Preview of a run that trains nothing: components, attention kernel, memory, and the tokens and FLOP of a step."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from arlow_vl.models.arlow.attention import kernel_for
from arlow_vl.models.arlow.linear import product_for
from arlow_vl.printing import number_of
from arlow_vl.training.build import Stage, build_stage
from arlow_vl.training.compiling import blocks_of
from arlow_vl.training.components import component_of
from arlow_vl.training.modules import labels_of
from arlow_vl.training.operations import Counts, operations_of, pairs_of
from arlow_vl.training.optimizers import moments_of
from arlow_vl.training.policy import Policy
from arlow_vl.training.recipe import ImageTextRecipe, Recipe
from arlow_vl.training.schedule import schedule_warnings
from arlow_vl.training.settings import OptimConfig
from arlow_vl.training.steps import COMPUTE_DTYPES

LOOKED_AT = 4
"""Batches that are read to estimate the content of a step."""


def dry_run(recipe: Recipe) -> Iterator[str]:
    """Yields the lines of the preview. Indexes or tokenises the data as the run would, but caches no features."""
    if isinstance(recipe, ImageTextRecipe):
        recipe = replace(recipe, cache_features=None)
    torch.manual_seed(recipe.run.seed)
    stage = build_stage(recipe)
    model = stage.module.model
    yield from table_of(model, stage.module.policy)
    yield f"attention: {attention_of(model, recipe.run.precision)}"
    if recipe.run.compile:
        yield f"compiled: {len(blocks_of(model))} blocks, each by itself"
    yield f"memory: {memory_of(model, recipe.optim)}"
    yield from step_of(stage, recipe)
    yield from schedule_warnings(recipe.optim, recipe.run.max_steps)


def table_of(model: nn.Module, policy: Policy) -> Iterator[str]:
    """Yields a table of the components. Tied weights count once, in the component that has them first."""
    yield f"{'component':17}{'parameters':>13}{'trained':>13}  {'treatment':11}dtype"
    for component, part in policy.items():
        parameters = parameters_of(model, component)
        dtypes = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}))
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        where = "" if part.blocks is None else f" (blocks {part.blocks[0]} to {part.blocks[1] - 1})"
        counts = f"{count_of(parameters):>13,}{count_of(trained):>13,}"
        yield f"{component:17}{counts}  {part.treatment + where:11}{dtypes}"


def attention_of(model: nn.Module, precision: str) -> str:
    """Returns the kernels of attention and matrix products on this machine, with the reasons."""
    config = model.config.get_text_config()  # pyrefly: ignore[not-callable]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = COMPUTE_DTYPES[precision.partition("-")[0]]
    choice, product = kernel_for(dtype, device, config.head_dim), product_for(dtype, device)
    name = str(dtype).removeprefix("torch.")
    return f"{choice.kernel} in {name} on {device} ({choice.reason}); products: {product.kernel} ({product.reason})"


def memory_of(model: nn.Module, optim: OptimConfig) -> str:
    """Returns the memory of weights, gradients and optimizer state as text; activations depend on the batch."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: p.numel() * p.element_size() for name, p in trained.items()}
    moments = sum(moments_of(name, p, optim) * gradients[name] for name, p in trained.items())
    parts = {"weights": weights, "gradients": sum(gradients.values()), "optimizer": moments}
    parts |= {"moving average": 4 * sum(p.numel() for p in trained.values())} if optim.ema else {}
    total = sum(parts.values())
    unit, size_of_one, digits = ("GiB", 2**30, 2) if total >= 2**30 else ("MiB", 2**20, 1)
    listed = ", ".join(f"{name} {size / size_of_one:.{digits}f}" for name, size in parts.items())
    return f"{total / size_of_one:.{digits}f} {unit} and the activations ({listed})"


def step_of(stage: Stage, recipe: Recipe) -> Iterator[str]:
    """Yields the content and operations of a step, estimated from the first batches, and the tokens of the run."""
    batches, per_step = list(islice(stage.data.training, LOOKED_AT)), recipe.run.accumulate_grad_batches
    counts, pairs = Counts(), 0.0
    for batch in batches:
        counts.add(batch, labels_of(batch))
        pairs += float(pairs_of(batch) or 0)
    means = {"tokens": counts.tokens, "tokens that are learnt": counts.labels, "images": counts.images}
    means = {what: count / len(batches) for what, count in means.items()}
    shape = "x".join(map(str, batches[0]["input_ids"].shape))
    listed = ", ".join(f"{per_step * mean:,.0f} {what}" for what, mean in means.items() if mean)
    yield f"step: {listed}; {per_step} batch{'es' * (per_step > 1)} of {shape}"
    needed = per_step * operations_of(stage.module.model).of(counts, pairs) / len(batches)
    size, unit = (1e12, "TFLOP") if needed >= 1e12 else (1e9, "GFLOP")
    yield f"operations: about {needed / size:,.3f} {unit} a step"
    steps = recipe.run.max_steps
    yield f"run: {number_of(steps, 'step')}, {steps * per_step * means['tokens']:,.0f} tokens"


def parameters_of(model: nn.Module, component: str) -> list[Any]:
    return [parameter for name, parameter in model.named_parameters() if component_of(name) == component]


def count_of(parameters: list[Any]) -> int:
    return sum(parameter.numel() for parameter in parameters)
