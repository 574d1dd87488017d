import logging
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from transformers.activations import ACT2FN

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVLConfig

PUBLISHED = {
    "vocab_size": 131072,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "head_dim": 192,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"},
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": True,
    "model_type": "arlow",
}
DEVIATIONS = {
    "num_key_value_heads": 4,
    "mlp_gated": True,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "cross_attention_interval": 4,
    "use_cross_attention": True,
    "pad_token_id": 3,
}
PUBLISHED_FORM = {
    "num_key_value_heads": 12,
    "mlp_gated": False,
    "attention_bias": True,
    "cross_attention_interval": 1,
    "attention_dropout": 0.1,
}


@pytest.mark.parametrize(("field", "value"), PUBLISHED.items())
def test_the_published_values_are_the_defaults(field, value):
    assert getattr(ArlowConfig(), field) == value


@pytest.mark.parametrize(("field", "value"), DEVIATIONS.items())
def test_a_deviation_from_the_published_values_is_explained_in_the_docstring(field, value):
    assert getattr(ArlowConfig(), field) == value
    assert field.removesuffix("_token_id") in (ArlowConfig.__doc__ or "")


def test_every_fourth_layer_has_a_cross_attention_block():
    assert ArlowConfig().cross_attention_layers == [3, 7, 11, 15, 19, 23, 27]
    assert ArlowConfig(cross_attention_interval=1).cross_attention_layers == list(range(28))


def test_a_default_configuration_logs_nothing(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        ArlowConfig()
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def expected_parameters(config: ArlowConfig) -> int:
    width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
    attention = 2 * width * width + 2 * width * kv_width + config.attention_bias * (2 * width + 2 * kv_width)
    mlp = (3 if config.mlp_gated else 2) * width * config.intermediate_size
    layer = attention + mlp + 2 * width
    cross_block = layer + 2 * config.head_dim + 2
    layers, blocks = config.num_hidden_layers, len(config.cross_attention_layers)
    return config.vocab_size * width + layers * layer + blocks * cross_block + width


@pytest.mark.parametrize(
    ("changes", "billions"),
    [
        ({}, 3.03),
        ({"use_cross_attention": False}, 2.48),
        (PUBLISHED_FORM, 3.87),
        (PUBLISHED_FORM | {"use_cross_attention": False}, 2.09),
    ],
    ids=["default", "text", "published form", "published text"],
)
def test_parameter_counts_follow_the_formula(changes, billions):
    config = ArlowConfig(**changes)
    with torch.device("meta"):
        model = ArlowForCausalLM(config)
    count = sum(p.numel() for p in model.parameters())
    assert count == expected_parameters(config)
    assert count / 1e9 == pytest.approx(billions, abs=5e-3)


YARN = {"rope_type": "yarn", "factor": 2.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 96, "long_factor": [2.0] * 96, "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
IMPOSSIBLE = [
    ({"num_key_value_heads": 5}, "num_attention_heads (12) must be a multiple of num_key_value_heads (5)"),
    ({"num_key_value_heads": 24}, "num_attention_heads (12) must be a multiple of num_key_value_heads (24)"),
    ({"hidden_size": 100}, "hidden_size (100) must be a multiple of num_attention_heads (12)"),
    ({"hidden_size": 36}, "head_dim (3, by default hidden_size / num_attention_heads) must be even"),
    ({"head_dim": 7}, "head_dim (7, by default"),
    ({"cross_attention_interval": 29}, "cross_attention_interval (29) must not exceed num_hidden_layers (28)"),
    ({"image_token_id": 131072}, "image_token_id (131072) must lie below vocab_size (131072)"),
    ({"vocab_size": 2}, "pad_token_id (3) must lie below vocab_size (2)"),
    ({"bos_token_id": -1}, "bos_token_id (-1) must lie below vocab_size (131072) and not below 0"),
    ({"eos_token_id": [2, 131073]}, "eos_token_id (131073) must lie below vocab_size (131072)"),
    ({"image_token_id": 2}, "image_token_id (2) must differ from eos_token_id"),
    ({"pad_token_id": 7}, "image_token_id (7) must differ from pad_token_id"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
    ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
    ({"hidden_size": -4}, "hidden_size must be at least 1, got -4"),
    ({"vocab_size": "many"}, "vocab_size"),
    ({"attention_dropout": 1.0}, "attention_dropout must be at least 0 and below 1, got 1.0"),
    ({"attention_dropout": -0.1}, "attention_dropout must be at least 0 and below 1, got -0.1"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps must be a positive number, got 0.0"),
    ({"initializer_range": float("nan")}, "initializer_range must be a positive number, got nan"),
    ({"hidden_act": "sliu"}, "hidden_act 'sliu' is unknown; did you mean silu?"),
    ({"rope_theta": 0.0}, "rope_theta must be a number above 1, got 0.0"),
    ({"rope_parameters": {"rope_type": "linnear"}}, "rope_type 'linnear' is unknown; did you mean linear?"),
    ({"rope_parameters": {"rope_type": "linear"}}, "rope_type 'linear' needs 'factor'"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor must be a number of at least 1, got 0.5"),
    ({"rope_parameters": {"rope_type": "dynamic", "factr": 2.0}}, "has no 'factr'; did you mean factor?"),
    ({"rope_parameters": {"full_attention": {"factor": 2.0}}}, "rope_type 'default' has no 'full_attention'"),
    (
        {"rope_parameters": LONGROPE | {"factor": None, "original_max_position_embeddings": 4096}},
        "original_max_position_embeddings (4096) must not exceed max_position_embeddings (2048): without a factor",
    ),
    ({"rope_parameters": YARN | {"original_max_position_embeddings": 1}}, "must be an integer of at least 2, got 1"),
    ({"rope_parameters": YARN | {"beta_slow": 40}}, "beta_slow (40) must be below beta_fast (32)"),
    ({"rope_parameters": YARN | {"attention_factor": 0.0}}, "attention_factor must be a positive number, got 0.0"),
    ({"rope_parameters": LONGROPE | {"long_factor": [1.0]}}, "long_factor has 1 entries and head_dim is 192"),
    ({"rope_parameters": LONGROPE | {"short_factor": 2.0}}, "short_factor must be a list of positive numbers"),
    ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "low_freq_factor (1.0) must be below high_freq_factor"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 does not go with rope_type 'default'"),
    (
        {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 1.5}},
        "partial_rotary_factor must be between 0 and 1, got 1.5",
    ),
    (
        {"hidden_size": 24, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "rope_type 'dynamic' needs a head_dim of at least 4, got 2",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), IMPOSSIBLE, ids=[sentence[:40] for _, sentence in IMPOSSIBLE])
def test_impossible_combinations_are_refused_with_the_fields_and_the_rule(changes, sentence):
    with pytest.raises(Exception, match=re.escape(sentence)):
        ArlowConfig(**changes)


def test_one_id_for_padding_and_the_end_of_text_is_warned_about(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        ArlowConfig(pad_token_id=2)
    finally:
        logger.removeHandler(caplog.handler)
    assert "pad_token_id and eos_token_id are both 2" in caplog.text


def test_a_misspelt_field_is_refused_with_the_closest_name():
    with pytest.raises(ValueError, match="'num_hiden_layers'; did you mean num_hidden_layers"):
        ArlowConfig(num_hiden_layers=2)


def test_the_published_name_of_the_cross_attention_switch_is_understood():
    assert ArlowConfig(cross_attention=False).cross_attention_layers == []


def test_a_vision_language_config_needs_a_decoder_with_cross_attention():
    with pytest.raises(ValueError, match="use_cross_attention False"):
        ArlowVLConfig(text_config={"use_cross_attention": False})


POSITIVE_FLOATS = st.floats(0.5, 16, exclude_min=True)
SCALINGS = {
    "default": st.just({}),
    "linear": st.fixed_dictionaries({"factor": POSITIVE_FLOATS}),
    "dynamic": st.fixed_dictionaries({"factor": POSITIVE_FLOATS}),
    "yarn": st.fixed_dictionaries({"factor": POSITIVE_FLOATS}, optional={"beta_fast": POSITIVE_FLOATS}),
    "longrope": st.fixed_dictionaries({key: st.lists(POSITIVE_FLOATS) for key in ("short_factor", "long_factor")}),
    "llama3": st.fixed_dictionaries(
        {"factor": POSITIVE_FLOATS, "low_freq_factor": st.just(1), "high_freq_factor": POSITIVE_FLOATS}
    ),
    "proportional": st.fixed_dictionaries(
        {}, optional={"partial_rotary_factor": st.floats(0, 1), "factor": POSITIVE_FLOATS}
    ),
}
ANY_VALUE = {
    "vocab_size": st.integers(1, 12),
    "hidden_size": st.integers(1, 12),
    "intermediate_size": st.integers(0, 5),
    "num_attention_heads": st.integers(0, 4),
    "num_key_value_heads": st.none() | st.integers(0, 4),
    "head_dim": st.none() | st.integers(0, 7),
    "hidden_act": st.sampled_from(sorted(ACT2FN)),
    "attention_dropout": st.floats(-0.1, 1.1) | st.integers(0, 1),
    "rms_norm_eps": st.sampled_from([-1e-6, 0.0, 1e-30, 1e-6, 1.0]),
    "initializer_range": st.sampled_from([-1.0, 0.0, 0.5, float("inf")]),
    "max_position_embeddings": st.integers(0, 40),
    "cross_attention_interval": st.integers(0, 4),
    "pad_token_id": st.none() | st.integers(-1, 12),
    "image_token_id": st.integers(-1, 12),
    "rope_theta": st.sampled_from([0.0, 0.5, 1.0, 1.5, 10.0, 1e9]),
}


@st.composite
def possible_configurations(draw) -> ArlowConfig:
    """Small configurations of every kind, a few of their values being anything; what is refused is left out."""
    kind = draw(st.sampled_from(sorted(SCALINGS)))
    scaling = {"rope_type": kind} | draw(SCALINGS[kind])
    if kind == "longrope" and draw(st.booleans()):
        scaling = {"rope_type": kind, "short_factor": [1.0, 1.5], "long_factor": [2.0, 8.0]}
    switches = ("mlp_gated", "mlp_bias", "attention_bias", "tie_word_embeddings", "use_cross_attention")
    values = {"vocab_size": 12, "hidden_size": 8, "intermediate_size": 5, "num_attention_heads": 2}
    values |= {"num_hidden_layers": draw(st.integers(1, 4)), "cross_attention_interval": 1, "rope_parameters": scaling}
    values |= {"num_key_value_heads": None, "max_position_embeddings": draw(st.integers(1, 40))}
    values |= {name: draw(st.booleans()) for name in switches}
    values |= {name: draw(ANY_VALUE[name]) for name in draw(st.sets(st.sampled_from(sorted(ANY_VALUE)), max_size=3))}
    try:
        return ArlowConfig(**values)
    except StrictDataclassError:
        reject()


@settings(max_examples=60)
@given(possible_configurations())
def test_a_configuration_that_constructs_builds_a_model_that_runs_and_survives_its_file(config):
    model = ArlowForCausalLM(config).eval()
    width = config.max_position_embeddings + 2  # beyond: dynamic and long scalings change there
    logits = model(torch.zeros(1, width, dtype=torch.long)).logits
    assert logits.shape == (1, width, config.vocab_size)
    assert logits.isfinite().all()
    assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_a_config_survives_the_trip_through_its_file(tmp_path):
    config = ArlowConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, rope_theta=500.0)
    config.save_pretrained(tmp_path)
    assert ArlowConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
