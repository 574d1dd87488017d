"""Encoder weights from a file, whole and of the right model or not at all."""

import pickle
import struct
import sys
from collections.abc import Set
from pathlib import Path

import torch
from torch import Tensor

from vision.encoder import VisionEncoder
from vision.timm_models import create_timm_model

# Errors that torch.load has been seen to raise for damaged pickles.
UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, AssertionError, AttributeError, TypeError),
    *(pickle.PickleError, struct.error),
)


class WeightsError(ValueError):
    """A weights file is missing, damaged or of another encoder."""

    exit_code = 4


def load_encoder_weights(encoder: VisionEncoder, path: str | Path) -> None:
    """Reads a state dict of the encoder's timm model, as safetensors or as `torch.save` wrote it.

    What the encoder left out of the model (head, later blocks) is passed over, and timm resizes position tables made
    for images of another size. On an error the encoder is unchanged.

    Raises:
        WeightsError: no such file, a damaged one, or one of another model.
    """
    own = encoder.backbone.state_dict()
    with torch.device("meta"):
        left_out = create_timm_model(encoder.timm_name, None).state_dict().keys() - own.keys()
    state = _without(left_out, _read_state_dict(Path(path)))
    resize = getattr(sys.modules[type(encoder.backbone).__module__], "checkpoint_filter_fn", None)
    other_size = {key for key, ours in own.items() if key in state and state[key].shape != ours.shape}
    if resize and other_size and all("pos" in key for key in other_size):
        state = _without(left_out, resize(state, encoder.backbone))
    if fault := _fault(state, own):
        raise WeightsError(f"{path} does not fit {encoder.timm_name}: {fault}; fetch the weights of this model")
    encoder.backbone.load_state_dict(state)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from timm.models import load_state_dict

    if not path.is_file():
        raise WeightsError(f"there are no encoder weights at {path}; `arlow data fetch` brings some into data/weights")
    try:
        state = load_state_dict(str(path))
    except (SafetensorError, *UNREADABLE) as error:
        raise WeightsError(f"{path} cannot be read as weights ({error}); fetch it again") from error
    if other := next((key for key, value in state.items() if not isinstance(value, Tensor)), None):
        raise WeightsError(f"{path} is no state dict: {other!r} is no tensor; save model.state_dict()")
    return state


def _without(keys: Set[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key not in keys}


def _fault(state: dict[str, Tensor], own: dict[str, Tensor]) -> str | None:
    """The reason why `state` cannot replace the weights `own`, naming the first wrong tensor; None: it can."""
    for key, ours in own.items():
        theirs = state.get(key)
        if theirs is None:
            if not key.endswith("num_batches_tracked"):  # older files do not have it, and eval mode does not read it
                return f"{key} is missing"
        elif theirs.shape != ours.shape:
            return f"{key} has shape {list(theirs.shape)}, not {list(ours.shape)}"
        elif theirs.is_floating_point() != ours.is_floating_point():
            return f"{key} is of {theirs.dtype}, not {ours.dtype}"
        elif not theirs.isfinite().all():
            return f"{key} has values that are not finite"
    unknown = next((key for key in state if key not in own), None)
    return None if unknown is None else f"{unknown} is not a tensor of it"
