"""Blocks compiled by torch's compiler, each by itself: a decoder layer with its cross block, a block of the encoder.

Alike blocks share their machine code, so that a deep model is compiled as fast as a shallow one. What is around the
blocks (embeddings, the segment table, the loss) stays as it is, and so do validations and looks (`as_written`).
"""

import importlib.util
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

MOST_GRAPHS = 64
"""Graphs that torch keeps of one kind of block, whose own limit is 8; what is over it would run as it is written.

Layers differ in what is trained and in whether they have a cross block, batches in whether they have images, and one
image or several."""


def compile_blocks(blocks: Iterable[nn.Module], *, dynamic: bool | None, backend: str = "inductor") -> None:
    """In place, each when it is first called; names in the state dict stay.

    Args:
        dynamic: True: a graph serves batches of any size. None: of the first batch's, then of any where another comes.
            False: of one size.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
    config.optimize_ddp = False  # parts graphs so that gradients are sent early; a block is such a part
    for block in blocks:
        block.compile(dynamic=dynamic, backend=backend)


def refuse_no_compiler(device_type: str) -> None:
    """Raises ValueError where torch's compiler would find none of its own in the first step."""
    if device_type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ValueError("run.compile needs Triton on a GPU; `pip install triton`, or set run.compile to false")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "run.compile needs a C++ compiler, and g++ is not on the PATH, nor another in the variable CXX; install "
            "one (`apt install g++`), or set run.compile to false"
        ) from error


def blocks_of(model: Any) -> list[nn.Module]:
    """What of a model is compiled."""
    inner = model.model
    if not hasattr(inner, "vision"):
        return list(inner.layers)
    return [*encoder_blocks(inner.vision.backbone), *inner.language_model.layers]


def encoder_blocks(backbone: nn.Module) -> list[nn.Module]:
    """Of a timm transformer its blocks, of a feature-map net its stages. None where timm names them otherwise."""
    found: Any = getattr(backbone, "blocks", None) or getattr(backbone, "stages", None)
    return list(found or ())


def as_written() -> AbstractContextManager[Any]:
    """While it is held, compiled blocks run uncompiled.

    A look reads hooks inside of blocks, which compiled code passes by, and texts that grow by a token. A validation's
    sizes, which a run may meet before or after its own, would decide for which sizes the steps' graphs are made.
    """
    return torch.compiler.set_stance("force_eager")
