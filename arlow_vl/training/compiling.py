"""Blocks compiled by torch's compiler, each by itself: a decoder layer with its cross block, a block of the encoder.

Alike blocks share their machine code, so that a deep model is compiled as fast as a shallow one. What is around the
blocks (embeddings, the segment table, the loss) stays as it is.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

MOST_GRAPHS = 64
"""Graphs that torch keeps for all blocks together: they differ in what is trained, and in whether there are images.

Its own limit, 8, is that of one function; and to it all blocks are one, `nn.Module.__call__`."""


def compile_blocks(blocks: Iterable[nn.Module], *, dynamic: bool, backend: str = "inductor") -> None:
    """In place: names in the state dict stay. With `dynamic` one graph serves batches of any size."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
    for block in blocks:
        block.compile(dynamic=dynamic, backend=backend)


def blocks_of(model: Any) -> list[nn.Module]:
    """What of a model is compiled, in its order. Encoders that timm builds otherwise than of blocks or stages have none."""
    inner = model.model
    encoder = getattr(inner, "vision", None)
    if encoder is None:
        return list(inner.layers)
    return [*encoder_blocks(encoder.backbone), *inner.language_model.layers]


def encoder_blocks(backbone: nn.Module) -> list[nn.Module]:
    """Blocks of a transformer; of a feature-map net its stages."""
    for name in ("blocks", "stages"):
        if (found := getattr(backbone, name, None)) is not None:
            return list(found)
    return []
