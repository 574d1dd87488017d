"""Shape annotations are checked on every call of the tests; one small decoder is shared by the modelling tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

# Heavy libraries first: the import hook below then has only our own modules to rewrite.
import transformers.modeling_utils  # noqa: F401
from jaxtyping import install_import_hook

torch.set_num_threads(1)  # on busy cores, two threads wait for each other at every small product
# All of ours but the configurations: transformers builds their constructors, and the hook would replace them.
CHECKED = (
    "models.arlow.attention models.arlow.runs models.arlow.segments models.arlow.layout models.arlow.linear "
    "models.arlow.loss models.arlow.cache_arlow models.arlow.generation_arlow models.arlow.layers_arlow "
    "models.arlow.modeling_arlow models.arlow_vl.modeling_arlow_vl models.arlow_vl.layout_arlow_vl "
    "models.arlow_vl.processing_arlow_vl models.arlow_vl.image_processing_arlow_vl data evaluation training"
)
install_import_hook(["vision", *(f"arlow_vl.{name}" for name in CHECKED.split())], "beartype.beartype")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def small_config():
    from arlow_vl.models.arlow.configuration_arlow import ArlowConfig

    return ArlowConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        cross_attention_interval=2,
    )


@pytest.fixture
def open_model(small_config):
    """A small decoder in eval mode whose cross-attention gates stand open."""
    from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM

    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    return model


def open_gates(model) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(0.7)
