"""A model folder of either kind, opened on a device in a precision, for commands, evaluation and serving."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.checkpoint_checks import read_object
from arlow_vl.models.folders import load_text_model, load_vision_language_model
from arlow_vl.printing import visible

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = "name cpu, cuda, cuda:1 or mps"


@dataclass(frozen=True)
class OpenModel:
    """A model in eval mode with what belongs to it."""

    model: Any
    tokenizer: Any
    processor: Any
    """None for a text model."""


def open_model(
    folder: Path, *, device: str = "auto", precision: str | None = None, needs_images: bool = False
) -> OpenModel:
    """Opens a text model or a vision-language model, whichever the folder holds.

    `device` is torch's name for it, "auto" the first accelerator, else the CPU. `precision` is that of the weights;
    None: as they were saved.

    Raises:
        CheckpointError: the folder holds no usable model, none that sees images although `needs_images`, or the
            device cannot be used.
    """
    _refuse_unknown_device(device)
    config = folder / "config.json"
    is_text_model = config.is_file() and read_object(config).get("model_type") == "arlow"
    if is_text_model and not needs_images:
        processor, (model, tokenizer) = None, load_text_model(folder)
    else:
        model, processor = load_vision_language_model(folder)
        tokenizer = processor.tokenizer
    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if found is None else str(found)
    if device.partition(":")[0] == "meta":  # torch's name for tensors without values
        raise CheckpointError(f"device meta computes nothing; {DEVICES}")
    try:
        model = model.to(torch.device(device), PRECISIONS[precision] if precision else None)
    except (RuntimeError, AssertionError) as error:  # as torch raises for a device that is not there
        reason = str(error).splitlines()[0].rstrip(".")
        raise CheckpointError(f"device {visible(device)} cannot be used: {reason}; {DEVICES} that is here") from None
    return OpenModel(model, tokenizer, processor)


def _refuse_unknown_device(device: str) -> None:
    """Raises CheckpointError for a name that torch does not know, before any weight is read."""
    try:
        torch.device("cpu" if device == "auto" else device)
    except RuntimeError:  # its message lists every backend that torch has had
        raise CheckpointError(
            f"device {visible(device)} cannot be used: torch knows none so called; {DEVICES}"
        ) from None
