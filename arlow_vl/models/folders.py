"""Opens a trained model folder for use, and writes one."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arlow_vl.errors import CheckpointError
from vision.whole_files import put_in_place


def load_vision_language_model(folder: Path) -> tuple[Any, Any]:
    """The model in eval mode, and its processor.

    Raises:
        CheckpointError: the folder holds no such model, or one whose weights do not fit its configuration, or a
            processor that prepares other images than the model was trained with.
    """
    from arlow_vl.models.auto import ArlowProcessor, ArlowVLForConditionalGeneration

    check_model_type(folder, "arlow_vl")
    processor = ArlowProcessor.from_pretrained(folder)
    return load_weights(ArlowVLForConditionalGeneration, folder), processor


def load_text_model(folder: Path) -> tuple[Any, Any]:
    """The model in eval mode, and its tokenizer. Raises CheckpointError likewise."""
    from arlow_vl.models.auto import ArlowForCausalLM, ArlowTokenizerFast

    check_model_type(folder, "arlow")
    return load_weights(ArlowForCausalLM, folder), ArlowTokenizerFast.from_pretrained(folder)


def check_files(folder: Path) -> None:
    """Raises CheckpointError unless the folder holds a configuration and weights: no hub is asked for it."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file() and not (folder / f"{name}.index.json").is_file():
            raise CheckpointError(f"{folder} holds no {name}; name the hf folder of a finished run (see `arlow fit`)")


def check_model_type(folder: Path, expected: str) -> None:
    """Raises CheckpointError unless the folder's config.json is of the expected kind and its weights are there."""
    from transformers import PreTrainedConfig

    check_files(folder)
    model_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if model_type != expected:
        hint = " (a text run's hf folder holds a text model)" if model_type == "arlow" else ""
        raise CheckpointError(f"{folder} holds a model of type {model_type!r}, expected {expected!r}{hint}")


def load_weights(model_class: Any, folder: Path, *, dtype: Any = "auto") -> Any:
    """The model in eval mode, all its tensors out of the folder. Raises CheckpointError if any is missing or broken."""
    from safetensors import SafetensorError

    try:
        model, report = model_class.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{folder}: the weights cannot be read ({error}); copy or train them again") from error
    wrong = {
        kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[kind]
    }
    if wrong:
        listed = "; ".join(f"{len(keys)} {kind.replace('_', ' ')}, first {keys[0]}" for kind, keys in wrong.items())
        raise CheckpointError(
            f"{folder}: the weights do not fit config.json: {listed}; put back the config.json that was saved with them"
        )
    return model.eval().requires_grad_(False)


def save_folder(parts: Iterable[Any], folder: Path) -> None:
    """Writes a model and what belongs to it under another name, and renames the folder when it is whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in parts:
        part.save_pretrained(partial)
    put_in_place(partial, folder)
