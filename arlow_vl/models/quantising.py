"""Linear layers in 8 or 4 bits: weights alone, what is computed stays in the model's dtype.

torchao's 4 bits are not offered: for machines without its CUDA kernels they lie in a byte each, and save nothing
(experiments/benchmarks/results/low_precision.md).
"""

from pathlib import Path
from typing import Any, Literal

from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils import is_bitsandbytes_available, is_torchao_available

from arlow_vl.errors import CheckpointError

Scheme = Literal["int8", "nf4"]
SCHEMES: tuple[Scheme, ...] = ("int8", "nf4")


def quantisation(scheme: Scheme) -> TorchAoConfig | BitsAndBytesConfig:
    """torchao's int8, one scale a row; or bitsandbytes' nf4 (Dettmers et al., 2023, arXiv:2305.14314).

    Raises:
        ValueError: the library is not installed.
    """
    is_there = is_torchao_available() if scheme == "int8" else is_bitsandbytes_available()
    if not is_there:
        library = "torchao" if scheme == "int8" else "bitsandbytes"
        raise ValueError(f"weights in {scheme} need {library}; pip install 'arlow-vl[quant]'")
    if scheme == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def load_quantised(model_class: Any, folder: Path, scheme: Scheme) -> Any:
    """The model of a folder with its decoder's linear layers in fewer bits, in eval mode.

    Raises:
        ValueError: the library is not installed.
        CheckpointError: the library refuses a layer.
    """
    settings = {"dtype": "auto", "quantization_config": quantisation(scheme), "device_map": "cpu"}
    try:
        model = model_class.from_pretrained(folder, **settings)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} cannot be quantised to {scheme}: {reason:.300}") from error
    return model.eval().requires_grad_(False)
