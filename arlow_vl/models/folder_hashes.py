"""Hashes of a model folder's tensors and files, by which text models are compared and results name their model."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from arlow_vl.models.arlow.checkpoint_checks import open_weights, weight_files
from vision.whole_files import sha256_of_file

Hashes = Mapping[str, tuple[str, str]]  # name -> dtype, SHA-256


def hash_text_tensors(folder: Path, original: Hashes | None = None) -> dict[str, tuple[str, str]]:
    """SHA-256 of the text model's tensors in a checkpoint of either kind, by its names for them, one at a time.

    A tensor all of whose values the dtype in `original` can hold is hashed in that: float32 holds bfloat16 exactly.
    """
    hashes = {}
    for path in weight_files(folder):
        with open_weights(path) as file:
            text_names = {key: text_name(key) for key in file.keys()}  # noqa: SIM118 - a file is no dict
            for key, new in text_names.items():
                if new:
                    dtype = (original or {}).get(new, (None, ""))[0]
                    hashes[new] = hash_tensor(as_dtype(file.get_tensor(key), dtype))
    return hashes


def as_dtype(tensor: Tensor, name: str | None) -> Tensor:
    """The tensor in the dtype of that name, if that changes no value of it."""
    converted = tensor if name is None else tensor.to(getattr(torch, name))
    return converted if torch.equal(converted.to(tensor.dtype), tensor) else tensor


def text_name(name: str) -> str | None:
    """The text model's name for a tensor of either model; None for one that it does not share."""
    if "cross_block" in name.split(".") or name.startswith(("model.vision.", "model.projector.")):
        return None
    return name.replace("model.language_model.", "model.", 1)


def hash_tensor(tensor: Tensor) -> tuple[str, str]:
    return str(tensor.dtype).removeprefix("torch."), sha256_of(tensor)


def sha256_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()


def sha256_of_weights(folder: Path) -> str:
    """SHA-256 of the weights file; of several files, that of the lines that `sha256sum` prints for them."""
    paths = weight_files(folder)
    if len(paths) == 1:
        return sha256_of_file(paths[0])
    lines = "".join(f"{sha256_of_file(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()
