# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Layout of a batch with images, from its shapes and counts on the CPU: no encoder runs for it."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from arlow_vl.models.arlow.encoder_checks import refuse_missing_images
from arlow_vl.models.arlow.layout import BatchLayout
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVLConfig
from vision.encoder import VisionEncoder


def image_lengths(
    config: ArlowVLConfig, encoder: VisionEncoder, images: Mapping[str, Any]
) -> Int[Tensor, " images"] | None:
    """Number of tokens that the decoder reads of each image; None where no image comes.

    `images` holds the arguments of `ArlowVLModel.encode_images`, beside anything else. Only shapes and counts are read.
    """
    values = images.get("pixel_values")
    values = images.get("image_features") if values is None else values
    if values is None or not len(values):
        return None
    tiles, grids = images.get("tiles_per_image"), images.get("image_grids")
    if config.projector == "perceiver":
        counted = next((counts for counts in (tiles, grids) if counts is not None), values)
        return torch.full((len(counted),), config.projector_latents)
    if grids is not None:
        if "pixel_values" not in images:
            return images["encoder_lengths"]
        patch = int((values.shape[1] // 3) ** 0.5)
        return torch.tensor([encoder.num_tokens(rows * patch, columns * patch) for rows, columns in grids.tolist()])
    of_tile = encoder.num_tokens(*values.shape[2:]) if "pixel_values" in images else values.shape[1]
    return torch.full((len(values),), of_tile) if tiles is None else tiles * of_tile


def layout_of(config: ArlowVLConfig, encoder: VisionEncoder, batch: Mapping[str, Any]) -> BatchLayout:
    """The `layout` of a batch of the model's keyword arguments, with position_ids and without a mask.

    Raises:
        ValueError: another number of images than of `<image>` tokens.
    """
    text = batch["input_ids"], batch["position_ids"]
    lengths = image_lengths(config, encoder, batch)
    if lengths is None:
        refuse_missing_images(config.text_config, text[0], None, None)
    return BatchLayout.of_batch(config.text_config, *text, lengths, batch.get("image_index"))
