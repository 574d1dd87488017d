"""Weights in fewer bits: which layers take part, whatever the processor."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.quantising import load_quantised
from tests.tiny_runs import TINY_MODEL

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


def saved(folder, **sizes):
    torch.manual_seed(0)
    model = ArlowForCausalLM(ArlowConfig(vocab_size=300, **TINY_MODEL | sizes)).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def test_layers_that_are_too_narrow_for_nf4_stay_as_they_are(tmp_path):
    """On a processor with AVX512-BF16 bitsandbytes ends in a reshape of its own for them."""
    import bitsandbytes

    small = load_quantised(saved(tmp_path), tmp_path, "nf4")
    quantised = [layer for layer in small.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert {(layer.in_features, layer.out_features) for layer in quantised} == {(64, 32)}
    assert len(quantised) == TINY_MODEL["num_hidden_layers"] + 1, "MLPs' last, of the one cross-attention block too"
    small.save_pretrained(tmp_path / "small")
    ids = torch.arange(4, 20).unsqueeze(0)
    again = ArlowForCausalLM.from_pretrained(tmp_path / "small", device_map="cpu").eval()
    assert torch.equal(small(ids).logits, again(ids).logits)
    assert sum(isinstance(layer, bitsandbytes.nn.Linear4bit) for layer in again.modules()) == len(quantised)
    assert type(again.lm_head) is nn.Linear


def test_a_text_model_in_fewer_bits_is_neither_built_on_nor_taken_out(tmp_path):
    small = load_quantised(saved(tmp_path), tmp_path, "nf4")
    small.save_pretrained(tmp_path / "small")
    encoder = ArlowVisionConfig(timm_name="test_vit", image_size=32)
    with pytest.raises(CheckpointError, match="small holds weights in fewer bits; take the folder that they were"):
        ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path / "small", encoder)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path, encoder)
    model.config.quantization_config = small.config.quantization_config
    with pytest.raises(CheckpointError, match="the model holds weights in fewer bits; take the folder that they were"):
        model.text_model()


def test_a_model_without_a_layer_for_nf4_is_refused(tmp_path):
    model = saved(tmp_path, intermediate_size=48)
    with pytest.raises(CheckpointError, match="no layer fits nf4, which takes rows of whole blocks of 64 weights"):
        load_quantised(model, tmp_path, "nf4")
