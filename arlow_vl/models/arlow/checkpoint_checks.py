# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Checks of a model folder's files; each error is one sentence that names the file and says what to do.

They ship with a checkpoint's code, so `from_pretrained` says the same with and without the package.
"""

import json
import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from .errors import CheckpointError

CONFIGS = ("config.json", "adapter_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers reads as JSON objects; the tokenizer's own files have checks beside its classes.
OBJECTS = (
    *(*CONFIGS, INDEX, "pytorch_model.bin.index.json", "generation_config.json"),
    *("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "tokenizer.json", "vocab.json"),
)
COPY_AGAIN = "copy or download the folder again"
LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.(\d+)\.")


class NamesDamagedFiles:
    """A mixin for models whose `from_pretrained` names damaged files; it comes before transformers' class."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Loads as transformers does; raises CheckpointError naming a file that is missing or damaged."""
        if pretrained_model_name_or_path is None:  # nothing but a state_dict
            return super().from_pretrained(None, *model_args, **kwargs)
        with named_faults(pretrained_model_name_or_path, kwargs, cls.config_class):
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


@contextmanager
def named_faults(
    source: str | Path, options: dict[str, Any], config_class: type[PreTrainedConfig] = PreTrainedConfig
) -> Iterator[None]:
    """Encloses transformers' `from_pretrained(source, **options)`, whose errors may not name the file.

    Raises:
        CheckpointError: the folder has no configuration, a JSON file of another form, a configuration of larger
            sizes than its weights, or a weights file that is missing, cut short or of another format.
    """
    folder = Path(source, options.get("subfolder") or "")
    if folder.is_dir():
        config = options.get("config")
        if config is None and options.get("gguf_file") is None:
            config = read_own_config(folder, config_class)
        has_weights = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
        if isinstance(config, PreTrainedConfig) and has_weights and not options.get("ignore_mismatched_sizes"):
            refuse_larger_sizes(folder, config)
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, KeyError, OSError) as error:
        fault = damaged_file(folder)
        if fault is None and not isinstance(error, SafetensorError):
            raise
        fault = fault or f"the weights of {source} cannot be read ({error})"
        raise CheckpointError(f"{fault}; copy or download the file again") from error


def read_own_config(folder: Path, config_class: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    """The folder's configuration; None for a folder of adapters. Checks its other JSON files too."""
    if not any((folder / name).is_file() for name in CONFIGS):
        # transformers would build a model of the default sizes
        raise CheckpointError(
            f"{folder} holds no config.json; name the folder that save_pretrained wrote, or pass a config"
        )
    objects = {name: read_object(folder / name) for name in OBJECTS if (folder / name).is_file()}
    values = objects.get("config.json")
    if values is None or values.get("model_type") != config_class.model_type:
        return None
    return config_of(folder, config_class, values)


def config_of(folder: Path, config_class: type[PreTrainedConfig], values: dict[str, Any]) -> PreTrainedConfig:
    """The configuration that config.json describes. Raises CheckpointError naming the file and the field."""
    try:
        config = config_class.from_dict(values)
        for part in (config, *(getattr(config, name) for name in config.sub_configs)):
            if part.dtype is not None and not isinstance(part.dtype, torch.dtype):
                raise ValueError(f"{type(part).__name__}: dtype must name a dtype of torch, got {part.dtype!r:.100}")
        return config
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}; put back the one that was saved there") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError if it holds anything else, NaN or Infinity included."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, it holds no JSON ({error}); {COPY_AGAIN}") from error
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(content), f"the value {content!r}")
        raise CheckpointError(f"{path} must hold a JSON object ({{...}}), got {kind}; {COPY_AGAIN}")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, one or the shards of its index. Raises CheckpointError if one is missing."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    places = read_object(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(_is_file_name(name) for name in places.values()):
        raise CheckpointError(f"{folder / INDEX}: weight_map must map each tensor to a file beside it; {COPY_AGAIN}")
    paths = [folder / name for name in sorted(set(places.values()))]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, but {INDEX} lists it; copy or download the file again")
    return paths


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "\0" not in name and Path(name).name == name


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """A safetensors file, open. Raises CheckpointError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
        raise CheckpointError(
            f"{path}{size} is cut short or no safetensors file: {reason}; copy or download the file again"
        ) from error


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a folder's tensors by their names, read from the headers alone."""
    shapes = {}
    for path in weight_files(folder):
        with open_weights(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def refuse_larger_sizes(folder: Path, config: PreTrainedConfig) -> None:
    """Refuses a configuration larger than its weights, before building it takes minutes or all memory.

    Raises:
        CheckpointError: the decoder's depth, vocabulary or widths are not those of the weights in the folder.
    """
    text = config.get_text_config()
    if getattr(config, "quantization_config", None) is not None or text.model_type != "arlow":
        return
    shapes = {name: shape for name, shape in tensor_shapes(folder).items() if "vision." not in name}
    depths = [int(match[1]) + 1 for name in shapes if (match := LAYER.match(name))]
    heads, groups = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    expected = {
        "embed_tokens.weight": (text.vocab_size, text.hidden_size),
        "layers.0.self_attn.q_proj.weight": (heads, text.hidden_size),
        "layers.0.self_attn.k_proj.weight": (groups, text.hidden_size),
        "layers.0.mlp.up_proj.weight": (text.intermediate_size, text.hidden_size),
    }
    if depths and text.num_hidden_layers > max(depths):
        raise misfit(folder, f"it says num_hidden_layers {text.num_hidden_layers:,}, the weights have {max(depths):,}")
    for name, shape in shapes.items():
        for ending, size in expected.items():
            if name.endswith(ending) and math.prod(shape) < math.prod(size):
                raise misfit(folder, f"{name} would be {list(size)}, the weights have {list(shape)}")


def refuse_fewer_bits(place: str | Path, config: PreTrainedConfig) -> None:
    """Raises CheckpointError for quantised weights, where their own names and values are wanted."""
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(f"{place} holds weights in fewer bits; take the folder that they were made from")


def misfit(folder: Path, difference: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the weights do not fit config.json: {difference}; put back the config.json that was saved with them"
    )


def damaged_file(folder: Path) -> str | None:
    """The first weights file of a folder that is missing or cannot be read, and why."""
    try:
        if (folder / INDEX).is_file():
            weight_files(folder)
        for path in sorted(folder.glob("*.safetensors")):
            with open_weights(path):
                pass
    except CheckpointError as error:
        return str(error).rpartition("; ")[0]
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return f"{folder} holds no {WEIGHTS}"
    for path in sorted(folder.glob("*.bin")):
        if not zipfile.is_zipfile(path):
            return f"{path} ({path.stat().st_size:,} bytes) is cut short or no PyTorch file"
    return None
