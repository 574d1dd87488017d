"""Linear layers in 8 or 4 bits: only weights are quantised, products are computed in the model's dtype.

torchao's 4 bits are not offered: for machines without its CUDA kernels they lie in a byte each, and save nothing
(experiments/benchmarks/results/low_precision.md).
"""

from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils import is_bitsandbytes_available, is_torchao_available

from arlow_vl.errors import CheckpointError

Scheme = Literal["int8", "nf4"]
NF4_BLOCK, NF4_ROWS = 64, 32
"""Weights of a block, and rows: bitsandbytes' kernel for CPUs with AVX512-BF16 takes only multiples of both."""
HEAD = "lm_head"


def quantisation(scheme: Scheme, kept: list[str] | None = None) -> TorchAoConfig | BitsAndBytesConfig:
    """torchao's int8, one scale a row; or bitsandbytes' nf4 (Dettmers et al., 2023, arXiv:2305.14314).

    `kept` are modules that nf4 leaves as they are; None: the head alone.

    Raises:
        ValueError: the library is not installed.
    """
    is_there = is_torchao_available() if scheme == "int8" else is_bitsandbytes_available()
    if not is_there:
        library = "torchao" if scheme == "int8" else "bitsandbytes"
        raise ValueError(f"weights in {scheme} need {library}; pip install 'arlow-vl[quant]'")
    if scheme == "nf4":
        settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": kept}
        return BitsAndBytesConfig(load_in_4bit=True, **settings)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def unfit_for_nf4(model: nn.Module) -> list[str]:
    """Names of the linear layers that a processor with AVX512-BF16 could not run in nf4.

    They stay as they are on every machine, so that a folder made on one can be used on another.
    """

    def fits(layer: nn.Linear) -> bool:
        return layer.in_features % NF4_BLOCK == 0 and layer.out_features % NF4_ROWS == 0

    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and not fits(layer)]


def load_quantised(model: Any, folder: Path, scheme: Scheme) -> Any:
    """The model of a folder, which is `model`, with its decoder's linear layers in fewer bits, in eval mode.

    Raises:
        ValueError: the library is not installed.
        CheckpointError: the library refuses a layer, or all are too narrow.
    """
    unfit = unfit_for_nf4(model) if scheme == "nf4" else []
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if set(linear) <= {*unfit, HEAD}:
        shape = f"rows of whole blocks of {NF4_BLOCK} weights, and a multiple of {NF4_ROWS} rows"
        raise CheckpointError(f"{folder}: no layer fits nf4, which takes {shape}; take int8 or bfloat16")
    settings = {"dtype": "auto", "quantization_config": quantisation(scheme, [*unfit, HEAD] if unfit else None)}
    try:
        quantised = type(model).from_pretrained(folder, device_map="cpu", **settings)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} cannot be quantised to {scheme}: {reason:.300}") from error
    return quantised.eval().requires_grad_(False)
