"""Tells on a CPU what would make the host wait for a GPU: tensors on the meta device have no values to be read."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
COPIES = ("aten::_to_copy", "aten::copy_", "aten::lift_fresh", "aten::_pin_memory")


class CopiesRefused(TorchDispatchMode):
    """Refuses copies between the CPU and the device, for which CUDA waits too; meta itself refuses to be read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors if tensor.ndim or func._schema.name in COPIES}) > 1:
            raise RuntimeError(f"{func} between the CPU and the device")
        return result


class ListsRefused(TorchFunctionMode):
    """Refuses lists of numbers as indices of tensors there, or as values of new ones: they are copied out of sight."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == META:
            raise RuntimeError(f"{func.__name__} copies to the device")
        if func is torch.Tensor.__getitem__ and args[0].device == META:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            on_cpu = (part for part in parts if isinstance(part, torch.Tensor) and part.device != META)
            if any(isinstance(part, list) for part in parts) or any(on_cpu):
                raise RuntimeError("an index is copied to the device")
        return func(*args, **kwargs)


@contextlib.contextmanager
def host_reads_refused() -> Iterator[None]:
    """Raises where what runs inside reads a number of a tensor on meta, or copies one there from the CPU.

    Such are item, tolist, bool, nonzero, masks as indices, unique, repeat_interleave, tensors made of lists.
    """
    with pytest.MonkeyPatch.context() as patch, CopiesRefused(), ListsRefused():
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no meta device
        patch.setattr(torch, "is_autocast_enabled", lambda *_: False)
        yield
