import pytest
import torch

from arlow_vl.configuration_arlow import ArlowConfig, ArlowVLConfig
from arlow_vl.modeling_arlow import ArlowForCausalLM


def test_the_published_sizes_are_the_defaults():
    config = ArlowConfig()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (131072, 2304, 9216)
    assert (config.num_hidden_layers, config.num_attention_heads, config.head_dim) == (28, 12, 192)
    assert (config.max_position_embeddings, config.rms_norm_eps) == (2048, 1e-6)
    assert config.rope_parameters == {"rope_theta": 1e5, "rope_type": "default"}
    assert (config.bos_token_id, config.eos_token_id, config.tie_word_embeddings) == (1, 2, True)


def expected_parameters(config: ArlowConfig) -> int:
    width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
    attention = 2 * width * width + 2 * width * kv_width
    mlp = (3 if config.mlp_gated else 2) * width * config.intermediate_size
    layer = attention + mlp + 2 * width
    cross_block = layer + 2 * config.head_dim + 2
    return config.vocab_size * width + 28 * layer + len(config.cross_attention_layers) * cross_block + width


@pytest.mark.parametrize(
    "changes", [{}, {"use_cross_attention": False}, {"mlp_gated": False, "cross_attention_interval": 1}]
)
def test_parameter_counts_follow_the_formula(changes):
    config = ArlowConfig(**changes)
    with torch.device("meta"):
        model = ArlowForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == expected_parameters(config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"num_key_value_heads": 5},
            "num_attention_heads .12. must be a multiple of num_key_value_heads .5.",
        ),
        ({"hidden_size": 100}, "hidden_size .100. must be a multiple of num_attention_heads .12."),
        ({"hidden_size": 36}, "head_dim .3, .* must be even"),
        (
            {"cross_attention_interval": 29},
            "cross_attention_interval .29. must not exceed num_hidden_layers .28.",
        ),
        ({"image_token_id": 131072}, "image_token_id .131072. must lie below vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_impossible_combinations_are_refused_with_the_fields_and_the_rule(changes, sentence):
    with pytest.raises(Exception, match=sentence):
        ArlowConfig(**changes)


def test_a_misspelt_field_is_refused_with_the_closest_name():
    with pytest.raises(ValueError, match="'num_hiden_layers'; did you mean num_hidden_layers"):
        ArlowConfig(num_hiden_layers=2)


def test_a_config_survives_the_trip_through_its_file(tmp_path):
    config = ArlowConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, rope_theta=500.0)
    config.save_pretrained(tmp_path)
    assert ArlowConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_the_published_name_of_the_cross_attention_switch_is_understood():
    assert ArlowConfig(cross_attention=False).cross_attention_layers == []


def test_a_vision_language_config_needs_a_decoder_with_cross_attention():
    with pytest.raises(ValueError, match="use_cross_attention False"):
        ArlowVLConfig(text_config={"use_cross_attention": False})
