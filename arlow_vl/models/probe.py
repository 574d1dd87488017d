"""Logits of a model folder in a process of its own: the proof that a written model is the one that was meant.

`python -m arlow_vl.models.probe FOLDER OUT` loads a folder as a user's program does, by transformers' Auto classes, and
writes its logits for inputs that follow from the configuration alone.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from arlow_vl.errors import CheckpointError
from arlow_vl.models import auto  # noqa: F401  registers the classes
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVLConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor

ROWS, TOKENS = 2, 24
SIDE = 40
"""Height and width of the probe's images, in pixels."""
FINE, COARSE = 1e-4, 2e-2
"""Differences that the order of summation may make, as shares of the largest logit: in float32, in shorter dtypes."""


@torch.inference_mode()
def probe_logits(model: Any) -> Float[Tensor, "rows text vocab"]:
    """Logits in float32 on the CPU; a vision-language model is shown an image in front of the first row."""
    config = model.config
    text = config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(text.vocab_size, (ROWS, TOKENS), generator=generator)
    special = {text.image_token_id, text.pad_token_id} if text.use_cross_attention else {text.pad_token_id}
    ordinary = next(token for token in range(text.vocab_size) if token not in special)
    ids[torch.isin(ids, torch.tensor([token for token in special if token is not None]))] = ordinary
    images: dict[str, Tensor] = {}
    if isinstance(config, ArlowVLConfig):
        ids[0, 0] = config.image_token_id
        pixels = torch.randint(256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=generator).numpy()
        images = dict(ArlowImageProcessor.of_model(config)(pixels, return_tensors="pt"))
    inputs = {name: tensor.to(model.device) for name, tensor in {"input_ids": ids, **images}.items()}
    return model(**inputs, use_cache=False).logits.float().cpu()


def check_written(model: Any, folder: Path, final: Path | None = None) -> float:
    """Loads the folder in a fresh process and returns the largest difference of its logits from the model's.

    `final` is the name that the folder will have, for messages; None: `folder`.

    Raises:
        CheckpointError: the folder cannot be loaded there, or answers differently.
    """
    expected, final = probe_logits(model), final or folder
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "logits.safetensors"
        command = [sys.executable, "-m", "arlow_vl.models.probe", str(folder), str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CheckpointError(f"{final} was written but cannot be loaded in a fresh process: {reason:.400}")
        found = load_file(file)["logits"]
    difference = (found - expected).abs().max().item()
    is_short = model.dtype.itemsize < 4 or getattr(model.config, "quantization_config", None) is not None
    allowed = (COARSE if is_short else FINE) * max(expected.abs().max().item(), 1)
    if not difference <= allowed:  # NaN is no small difference
        raise CheckpointError(
            f"{final} answers differently in a fresh process: logits differ by {difference:.3g}, {allowed:.3g} are "
            "allowed; do not use it"
        )
    return difference


def main() -> None:
    folder, out = sys.argv[1:]
    config = AutoConfig.from_pretrained(folder)
    kind = AutoModelForImageTextToText if isinstance(config, ArlowVLConfig) else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype="auto").eval()
    save_file({"logits": probe_logits(model)}, out)


if __name__ == "__main__":
    main()
