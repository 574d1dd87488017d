"""Tiny model folders of both kinds, random but with open gates, for the tests of use."""

from pathlib import Path
from typing import Any

import torch

from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.folder_writing import save_folder
from tests.tiny_runs import tiny_tokenizer, write_text_checkpoint

WIDE = {"attention_dropout": 0.0, "initializer_range": 0.3, "max_position_embeddings": 128}  # it says various things


def write_folders(folder: Path, **text_model: Any) -> tuple[Path, Path]:
    """A text model's folder, and that of a vision-language model made of it."""
    text = write_text_checkpoint(folder / "text", **WIDE | text_model)
    vision = ArlowVisionConfig(timm_name="test_efficientnet", image_size=64)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(text, vision)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(1.5)
        elif "cross_block" in name and parameter.ndim == 2:
            parameter.data.normal_(std=0.5)
    processor = ArlowProcessor(ArlowImageProcessor.of_model(model.config), tiny_tokenizer())
    save_folder((model, processor), folder / "vision")
    return text, folder / "vision"
