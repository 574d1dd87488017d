"""Named sizes of a decoder, such as `0.1b`, which set the fields of ArlowConfig and a learning rate.

The name is the number of parameters of the text decoder with a vocabulary of 32,768, embedding included;
cross-attention blocks add a quarter of its layers' weights. Everything but width and depth follows one rule, so that
small models predict large ones: 64 channels per head, about three query heads per key head, a SwiGLU of 8/3 of the
width, a cross-attention block before every fourth layer, and initial weights with a deviation of 1 / sqrt(width).
"""

import math
from collections.abc import Mapping
from typing import Any

from arlow_vl.models.arlow.spelling import did_you_mean

HEAD_DIM = 64
MOST_KEY_HEADS = 8
"""Largest number of key heads, so that 2, 4 or 8 tensor-parallel devices can share them and the cache stays small."""
INTERVAL = 4
LR_TIMES_WIDTH = 0.768
"""Peak learning rate of AdamW times `hidden_size`: 1e-3 at 768.

The rate of matrices scales with 1 / width (muP, arXiv:2203.03466, table 3), as those of the GPT-3 series do, from 6e-4
at 768 to 1.6e-4 at 2560 (arXiv:2005.14165, table 2.1). The constant is that of this project's own recipes, 4e-3 at 192
and 2e-3 at 384."""

SIZES: dict[str, tuple[int, int]] = {
    "0.02b": (320, 8),
    "0.05b": (512, 12),
    "0.1b": (768, 12),
    "0.3b": (1024, 24),
    "0.8b": (1536, 28),
    "1.5b": (2048, 32),
    "3b": (2560, 40),
}
"""Width and depth of each size: hidden_size and num_hidden_layers."""


def fields_of_size(size: object) -> dict[str, Any]:
    """Returns the fields of ArlowConfig for a name in `SIZES`. Raises ValueError for any other."""
    if not isinstance(size, str) or size not in SIZES:
        raise ValueError(f"model.size {size!r} is unknown; {did_you_mean(size, SIZES)}")
    return fields_of_shape(*SIZES[size])


def fields_of_shape(hidden_size: int, num_hidden_layers: int) -> dict[str, Any]:
    """Returns the fields of ArlowConfig for a depth and a width, which must be a multiple of 64."""
    heads = hidden_size // HEAD_DIM
    divisors = [n for n in range(1, min(heads, MOST_KEY_HEADS) + 1) if heads % n == 0]
    return {
        "hidden_size": hidden_size,
        "intermediate_size": 128 * math.ceil(hidden_size * 8 / 3 / 128),
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": min(divisors, key=lambda n: abs(n - heads / 3)),
        "head_dim": HEAD_DIM,
        "cross_attention_interval": min(INTERVAL, num_hidden_layers),
        "initializer_range": round(hidden_size**-0.5, 4),
    }


def with_size(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe's `model` with the fields of its `size` where it gives none. Raises ValueError if unknown."""
    given = {name: value for name, value in model.items() if name != "size"}
    if "size" not in model:
        return given
    fields, depth = fields_of_size(model["size"]), given.get("num_hidden_layers")
    if isinstance(depth, int) and depth > 0:
        fields["cross_attention_interval"] = min(INTERVAL, depth)
    return fields | given


def lr_of_width(hidden_size: int) -> float:
    """Returns the peak learning rate for a recipe that gives none."""
    return float(f"{LR_TIMES_WIDTH / hidden_size:.3g}")
