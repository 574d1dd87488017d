"""What a run would be: parts and their treatment, kernel, memory, tokens and operations of a step. Trains nothing."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from arlow_vl.models.arlow.attention import kernel_for
from arlow_vl.models.arlow.linear import product_for
from arlow_vl.training.build import Stage, build_stage
from arlow_vl.training.modules import labels_of
from arlow_vl.training.policy import Policy
from arlow_vl.training.recipe import ImageTextRecipe, Recipe
from arlow_vl.training.settings import OptimConfig
from arlow_vl.training.stages import component_of

LOOKED_AT = 4
"""Batches that are read to know what a step holds."""
COMPUTE_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


def dry_run(recipe: Recipe) -> Iterator[str]:
    """Lines for people. The data are indexed or tokenised as for the run; features are not computed ahead."""
    if isinstance(recipe, ImageTextRecipe):
        recipe = replace(recipe, cache_features=None)
    torch.manual_seed(recipe.run.seed)
    stage = build_stage(recipe)
    model = stage.module.model
    yield from table_of(model, stage.module.policy)
    yield f"attention: {attention_of(model, recipe.run.precision)}"
    yield f"memory: {memory_of(model, recipe.optim)}"
    yield from step_of(stage, recipe)


def table_of(model: nn.Module, policy: Policy) -> Iterator[str]:
    """Tied weights count once, for the component that they are first met in."""
    yield f"{'component':17}{'parameters':>13}{'trained':>13}  {'treatment':11}dtype"
    for component, part in policy.items():
        parameters = parameters_of(model, component)
        dtypes = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}))
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        where = "" if part.blocks is None else f" (blocks {part.blocks[0]} to {part.blocks[1] - 1})"
        counts = f"{count_of(parameters):>13,}{count_of(trained):>13,}"
        yield f"{component:17}{counts}  {part.treatment + where:11}{dtypes}"


def attention_of(model: nn.Module, precision: str) -> str:
    config = model.config.get_text_config()  # pyrefly: ignore[not-callable]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = COMPUTE_DTYPES[precision.partition("-")[0]]
    choice, product = kernel_for(dtype, device, config.head_dim), product_for(dtype, device)
    name = str(dtype).removeprefix("torch.")
    return f"{choice.kernel} in {name} on {device} ({choice.reason}); products: {product.kernel} ({product.reason})"


def memory_of(model: nn.Module, optim: OptimConfig) -> str:
    """Of what does not depend on the batch."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    parts = {"weights": weights, "gradients": gradients, "optimizer": 2 * gradients}
    parts |= {"moving average": gradients} if optim.ema else {}
    told = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    return f"{sum(parts.values()) / 2**30:.2f} GiB and the activations ({told})"


def step_of(stage: Stage, recipe: Recipe) -> Iterator[str]:
    """Means over the first batches. A product costs 2 operations a weight and token; its gradients as much again each:
    of the input where something behind it is trained, of the weight where that is."""
    batches, per_step = list(islice(stage.data.training, LOOKED_AT)), recipe.run.accumulate_grad_batches
    means = {
        "tokens": sum(batch.get("num_tokens", batch["input_ids"].numel()) for batch in batches) / len(batches),
        "tokens that are learnt": sum(map(labels_of, batches)) / len(batches),
        "images": sum(batch.get("num_images", 0) for batch in batches) / len(batches),
    }
    shape = "x".join(map(str, batches[0]["input_ids"].shape))
    told = ", ".join(f"{per_step * mean:,.0f} {what}" for what, mean in means.items() if mean)
    yield f"step: {told}; {per_step} batch{'es' * (per_step > 1)} of {shape}"
    operations = per_step * operations_of(stage.module.model, stage.module.policy, means["tokens"], means["images"])
    yield f"operations: about {operations / 1e12:,.3f} TFLOP a step, attention itself not counted"
    yield f"run: {recipe.run.max_steps:,} steps, {recipe.run.max_steps * per_step * means['tokens']:,.0f} tokens"


def operations_of(model: nn.Module, policy: Policy, tokens: float, images: float) -> float:
    """Floating-point operations of a batch in its products with weights."""
    encoder = getattr(getattr(model, "model", None), "vision", None)
    image_tokens = images * encoder.num_patches if encoder is not None else 0.0
    reads = {"vision": image_tokens, "projector": image_tokens, "cross_attention": tokens, "decoder": tokens}
    total = 0.0
    for component, part in policy.items():
        goes_back = component != "vision" or part.is_trained
        for parameter in parameters_of(model, component):
            times = 1 + parameter.requires_grad + goes_back
            total += 2 * times * (parameter.numel() if parameter.ndim > 1 else 0) * reads[component]
    return total


def parameters_of(model: nn.Module, component: str) -> list[Any]:
    return [parameter for name, parameter in model.named_parameters() if component_of(name) == component]


def count_of(parameters: list[Any]) -> int:
    return sum(parameter.numel() for parameter in parameters)
