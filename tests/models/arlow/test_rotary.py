"""Every rotary scaling that transformers knows, against Llama's embedding with the same parameters."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.layers_arlow import ArlowRotaryEmbedding
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow.rope_rules import REQUIRED

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
HALF = SIZES["hidden_size"] // SIZES["num_attention_heads"] // 2
BEFORE = {"original_max_position_embeddings": 16}
BEYOND = {"original_max_position_embeddings": 128}  # a model whose max_position_embeddings somebody has lowered
SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, **BEFORE, "attention_factor": 0.7, "beta_fast": 16.0, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": 4, **BEFORE, "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False},
    {"rope_type": "longrope", "factor": 4.0, **BEFORE, "short_factor": [1.5] * HALF, "long_factor": [3.0] * HALF},
    {"rope_type": "llama3", "factor": 4.0, **BEFORE, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "llama3", "factor": 4.0, **BEYOND, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, **BEYOND},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": 2.0},
]


def test_every_scaling_of_transformers_is_in_the_rules_and_in_these_tests():
    known = {"default", *ROPE_INIT_FUNCTIONS}
    assert known == set(REQUIRED) == {scaling["rope_type"] for scaling in SCALINGS}


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_a_scaling_turns_as_llama_does(scaling):
    parameters = {"rope_theta": 1e5, **scaling}
    ours = ArlowRotaryEmbedding(ArlowConfig(**SIZES, rope_parameters=dict(parameters)))
    llama = LlamaRotaryEmbedding(LlamaConfig(**SIZES, rope_parameters=dict(parameters)))
    x = torch.zeros(1)
    for width in (8, 100, 8):  # within pretraining's length, far beyond it, and back: some scalings change with it
        positions = torch.arange(width)[None]
        # A frequency computed as theta ** -e or as 1 / theta ** e differs in its last bit, times position 100.
        torch.testing.assert_close(ours(x, positions), llama(x, positions), atol=2e-5, rtol=0)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_an_earlier_call_changes_nothing(scaling):
    config = ArlowConfig(**SIZES, rope_parameters={"rope_theta": 1e4, **scaling})
    fresh, used, x = ArlowRotaryEmbedding(config), ArlowRotaryEmbedding(config), torch.zeros(1)
    used(x, torch.arange(100)[None])
    assert torch.equal(torch.stack(used(x, torch.arange(80)[None])), torch.stack(fresh(x, torch.arange(80)[None])))


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_a_scaled_model_runs_beyond_its_length_and_comes_back_from_its_file(scaling, tmp_path):
    model = ArlowForCausalLM(ArlowConfig(**SIZES, rope_parameters=dict(scaling))).eval()
    model.save_pretrained(tmp_path)
    input_ids = torch.randint(0, 50, (1, 80))
    logits = model(input_ids).logits
    assert torch.equal(ArlowForCausalLM.from_pretrained(tmp_path).eval()(input_ids).logits, logits)
    plain = ArlowConfig(**SIZES)
    if scaling != {"rope_type": "default"}:
        assert not torch.equal(ArlowForCausalLM.from_pretrained(tmp_path, config=plain)(input_ids).logits, logits)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.device("cpu"), torch.bfloat16),
        lambda model: model.bfloat16(),
        lambda model: model.half(),
        lambda model: model.double(),
    ],
    ids=["to", "bfloat16", "half", "double"],
)
def test_angles_are_those_of_float32_in_a_model_of_another_dtype(change, scaling):
    config = ArlowConfig(**SIZES, rope_parameters={"rope_theta": 1e4, **scaling})
    changed = change(ArlowForCausalLM(config)).model.rotary_emb
    x, plain = torch.zeros(1), ArlowRotaryEmbedding(config)
    for width in (8, 100, 8):
        positions = torch.arange(width)[None]
        torch.testing.assert_close(changed(x, positions), plain(x, positions), atol=0, rtol=0)


def test_the_frequencies_follow_the_model_to_another_device_and_not_to_another_dtype():
    rotary = ArlowRotaryEmbedding(ArlowConfig(**SIZES)).to("meta", torch.bfloat16)
    assert {(buffer.device.type, buffer.dtype) for buffer in rotary.buffers()} == {("meta", torch.float32)}
    rotary.to_empty(device="cpu")
    assert {(buffer.device.type, buffer.dtype) for buffer in rotary.buffers()} == {("cpu", torch.float32)}


@pytest.mark.parametrize("scaling", SCALINGS[1:], ids=lambda scaling: scaling["rope_type"])
def test_the_older_keys_mean_the_same(scaling):
    older = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    config = ArlowConfig(**SIZES, rope_theta=500.0, rope_scaling=older)
    now = ArlowConfig(**SIZES, rope_parameters={"rope_theta": 500.0, **scaling})
    assert {k: v for k, v in config.rope_parameters.items() if k != "type"} == now.rope_parameters
