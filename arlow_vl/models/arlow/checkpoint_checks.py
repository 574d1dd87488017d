# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""What can be wrong with a checkpoint's files, told in one sentence that names the file and what to do."""

import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .errors import CheckpointError

CONFIGS = ("config.json", "adapter_config.json")


class NamesDamagedFiles:
    """A mixin for models, in front of transformers' own class."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As in transformers; a file that is missing or damaged ends in one sentence that names it."""
        if pretrained_model_name_or_path is None:  # nothing but a state_dict
            return super().from_pretrained(None, *model_args, **kwargs)
        with named_faults(pretrained_model_name_or_path, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


@contextmanager
def named_faults(source: str | Path, options: dict[str, Any]) -> Iterator[None]:
    """Around transformers' `from_pretrained(source, **options)`, whose errors may not name the file.

    Raises:
        CheckpointError: the folder has no configuration, or a weights file is missing, cut short or of another format.
    """
    folder = Path(source, options.get("subfolder") or "")
    needs_config = options.get("config") is None and options.get("gguf_file") is None
    if needs_config and folder.is_dir() and not any((folder / name).is_file() for name in CONFIGS):
        # transformers would build a model of the default sizes
        raise CheckpointError(
            f"{folder} holds no config.json; name the folder that save_pretrained wrote, or pass a config"
        )
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, KeyError, OSError) as error:
        fault = damaged_file(folder)
        if fault is None and not isinstance(error, SafetensorError):
            raise
        fault = fault or f"the weights of {source} cannot be read ({error})"
        raise CheckpointError(f"{fault}; copy or download the file again") from error


def damaged_file(folder: Path) -> str | None:
    """The first weights file of a folder that is missing or cannot be read, and why."""
    for index in sorted(folder.glob("*.index.json")):
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (folder / name).is_file():
                return f"{folder / name} is missing, but {index.name} lists it"
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return f"{folder} holds no model.safetensors"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            return f"{path} ({path.stat().st_size:,} bytes) is cut short or no safetensors file: {reason}"
    for path in sorted(folder.glob("*.bin")):
        if not zipfile.is_zipfile(path):
            return f"{path} ({path.stat().st_size:,} bytes) is cut short or no PyTorch file"
    return None
