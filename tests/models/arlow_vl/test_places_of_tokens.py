"""Tokens that are alike are told apart by where they lie, in every form that an image takes."""

import pytest
import torch
from PIL import Image

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration


@pytest.mark.parametrize("transform", [{}, {"max_tiles": 6}, {"max_patches": 16}], ids=["one size", "tiles", "native"])
def test_equal_tokens_are_told_apart_by_their_places(small_config, tmp_path, transform):
    ArlowForCausalLM(small_config).save_pretrained(tmp_path / "text")
    vision = ArlowVisionConfig(timm_name="test_vit", image_size=32, transform=transform)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path / "text", vision).eval()
    if model.model.projector.tile_embedding is not None:  # which would tell tiles apart, not places
        torch.nn.init.zeros_(model.model.projector.tile_embedding.weight)
    processor = ArlowImageProcessor.of_model(model.config)
    given = dict(processor(Image.new("RGB", (150, 70)), return_tensors="pt"))
    pixels = given.pop("pixel_values")
    if "image_grids" in given:
        features, given["encoder_lengths"] = model.model.vision.forward_native(pixels, given["image_grids"])
    else:
        features = model.model.vision(pixels)
    alike = torch.randn(features.shape[-1]).expand_as(features)
    states = model.model.encode_images(image_features=alike, **given).states.flatten(0, -2)
    if "tile_ids" in given:
        states = states[features.shape[1] :]  # tokens of the thumbnail may lie where tiles' do
    assert len(states) >= 4
    assert (torch.cdist(states, states) + torch.eye(len(states))).min() > 1e-3
