"""A model whose tensors lie in parts, in one process."""

import warnings

import torch
from torch.distributed.device_mesh import init_device_mesh

from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.training.run import quiet_libraries
from arlow_vl.training.sharding import shard

IMAGE = 7


def test_a_model_in_parts_trains_its_encoder_without_a_warning(mesh, small_config):
    """Of FSDP2, which finds among its outputs the encoder's tokens, a view."""
    vision = ArlowVisionConfig(timm_name="test_vit", image_size=32)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=small_config, vision_config=vision)).train()
    parts = init_device_mesh("cpu", (1, 1, 1), mesh_dim_names=("replicate", "shard", "tensor"))
    shard(model, parts, precision="32-true", encodes=True)
    ids = torch.tensor([[20, IMAGE, 21, 22]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_libraries():
            model(input_ids=ids, labels=ids, pixel_values=torch.randn(1, 3, 32, 32)).loss.backward()
