"""Compilation of single blocks by torch.compile: a decoder layer with its cross block, or a block of the encoder.

Equal blocks share their compiled code, so a deep model compiles as fast as a shallow one. Everything around the blocks
(embeddings, segment table, loss) runs uncompiled, and so do validations and looks (`as_written`).
"""

import importlib.util
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

MOST_GRAPHS = 64
"""Limit of compiled graphs for one kind of block (torch's default is 8), above which it would run uncompiled.

Layers differ in which parameters are trained and whether they have a cross block; batches in whether they have no, one
or several images."""


def compile_blocks(blocks: Iterable[nn.Module], *, dynamic: bool | None, backend: str = "inductor") -> None:
    """Marks blocks, in place, to be compiled at their first call; names in the state dict stay the same.

    Args:
        dynamic: True: a graph serves batches of any size. False: of one size. None: of the first batch's size, and of
            any size once another one comes.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
    config.optimize_ddp = False  # would split graphs to send gradients early; blocks are small already
    for block in blocks:
        block.compile(dynamic=dynamic, backend=backend)


def refuse_no_compiler(device_type: str) -> None:
    """Raises ValueError if Triton (GPU) or a C++ compiler (CPU) is missing, which torch.compile needs."""
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
    """Returns the blocks of a model that are compiled."""
    inner = model.model
    if not hasattr(inner, "vision"):
        return list(inner.layers)
    return [*encoder_blocks(inner.vision.backbone), *inner.language_model.layers]


def encoder_blocks(backbone: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a timm transformer, the stages of a feature-map net; [] if timm names them otherwise."""
    found: Any = getattr(backbone, "blocks", None) or getattr(backbone, "stages", None)
    return list(found or ())


def as_written() -> AbstractContextManager[Any]:
    """Returns a context manager in which compiled blocks run uncompiled.

    A look needs hooks inside blocks, which compiled code skips, and generates text whose length grows by a token. The
    sizes of a validation would also influence for which sizes the graphs of training steps are compiled, depending on
    whether the run was resumed.
    """
    return torch.compiler.set_stance("force_eager")
