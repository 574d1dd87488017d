"""transformers' own common tests of Arlow. Their code is in no package, so this runs in a checkout of transformers.

    cp tests/transformers_suite.py CHECKOUT/tests/models/arlow/test_modeling_arlow.py   # beside an empty __init__.py
    cd CHECKOUT && python -m pytest tests/models/arlow

What does not apply, and why: docs/vision.md.
"""

import copy
import unittest
from unittest import mock

import torch
from transformers.models.auto import modeling_auto

import arlow_vl
from arlow_vl.models.arlow.cache_arlow import CrossAttentionCacheLayer

from ... import test_modeling_common as common
from ...causal_lm_tester import CausalLMModelTest, CausalLMModelTester
from ...vlm_tester import VLMModelTest, VLMModelTester

IMAGE = 9

for task, name in {
    "": "ArlowModel",
    "FOR_CAUSAL_LM_": "ArlowForCausalLM",
    "FOR_SEQUENCE_CLASSIFICATION_": "ArlowForSequenceClassification",
    "FOR_TOKEN_CLASSIFICATION_": "ArlowForTokenClassification",
    "FOR_QUESTION_ANSWERING_": "ArlowForQuestionAnswering",
}.items():
    getattr(modeling_auto, f"MODEL_{task}MAPPING_NAMES")["arlow"] = name
modeling_auto.MODEL_MAPPING_NAMES["arlow_vl"] = "ArlowVLModel"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["arlow_vl"] = "ArlowVLForConditionalGeneration"


class ArlowTester(CausalLMModelTester):
    base_model_class = arlow_vl.ArlowModel
    config_class = arlow_vl.ArlowConfig
    causal_lm_class = arlow_vl.ArlowForCausalLM
    sequence_classification_class = arlow_vl.ArlowForSequenceClassification
    token_classification_class = arlow_vl.ArlowForTokenClassification
    question_answering_class = arlow_vl.ArlowForQuestionAnswering

    def __init__(self, parent, **kwargs):
        super().__init__(parent, **kwargs)
        self.hidden_act, self.tie_word_embeddings, self.cross_attention_interval = "silu", True, 2
        self.pad_token_id, self.image_token_id = 0, 98


class ArlowModelTest(CausalLMModelTest, unittest.TestCase):
    model_tester_class = ArlowTester
    test_all_params_have_gradient = False  # text alone does not enter the cross-attention blocks


class ArlowVLTester(VLMModelTester):
    base_model_class = arlow_vl.ArlowVLModel
    config_class = arlow_vl.ArlowVLConfig
    text_config_class = arlow_vl.ArlowConfig
    vision_config_class = arlow_vl.ArlowVisionConfig
    conditional_generation_class = arlow_vl.ArlowVLForConditionalGeneration
    forced_config_args = []
    projector = "mlp"

    def __init__(self, parent, **kwargs):
        super().__init__(
            parent,
            batch_size=7,
            seq_length=8,
            num_image_tokens=1,
            image_token_id=IMAGE,
            image_size=32,
            timm_name="test_vit",
            projector=self.projector,
            projector_latents=5,
            cross_attention_interval=2,
            tie_word_embeddings=True,
            hidden_act="silu",
            **kwargs,
        )

    def create_attention_mask(self, input_ids):
        return torch.ones_like(input_ids)

    def place_image_tokens(self, input_ids, config):
        input_ids = input_ids.masked_fill(input_ids == IMAGE, IMAGE + 1)
        input_ids[:, 3] = IMAGE  # not first: some tests hide the first token of a row
        return input_ids


class ArlowVLModelTest(VLMModelTest, unittest.TestCase):
    model_tester_class = ArlowVLTester
    additional_model_inputs = ["pixel_values"]

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        """The layers of the images stand behind the decoder's own."""
        text, layers = config.get_text_config(), list(past_key_values.layers)
        cross = [layer for layer in layers if isinstance(layer, CrossAttentionCacheLayer)]
        assert layers[len(layers) - len(cross) :] == cross
        assert len(cross) in (0, len(text.cross_attention_layers))
        for layer in cross:
            assert layer.keys.shape[0] == batch_size
            assert layer.keys.shape[2:] == (text.num_key_value_heads, text.head_dim)
        past_key_values.layers[:] = layers[: len(layers) - len(cross)]
        try:
            super()._check_past_key_values_for_generate(batch_size, past_key_values, seq_length, config)
        finally:
            past_key_values.layers[:] = layers

    def test_can_init_all_missing_weights(self):
        """Upstream leaves timm's weights out for its own wrappers, by their class names."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with common.seeded_weight_init():
                made = model_class(copy.deepcopy(config))
                loaded = model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict={})
            assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
            expected, found = made.state_dict(), loaded.state_dict()
            assert expected.keys() == found.keys()
            for key in expected:
                if "vision.backbone." in key:
                    assert abs(found[key].std(correction=0) - expected[key].std(correction=0)) < 0.2, key
                else:
                    assert torch.equal(expected[key], found[key]), key


def _without_image(ids_tensor, *args, **kwargs):
    ids = ids_tensor(*args, **kwargs)
    return ids.masked_fill(ids == IMAGE, IMAGE + 1)


def _with_text_alone(test):
    def changed(self):
        with mock.patch.object(common, "ids_tensor", lambda *args, **kwargs: _without_image(original, *args, **kwargs)):
            test(self)

    original = common.ids_tensor
    return changed


for name in [name for name in dir(VLMModelTest) if name.startswith("test_model_rope_scaling_from_config_")]:
    setattr(ArlowVLModelTest, name, _with_text_alone(getattr(VLMModelTest, name)))


class ArlowVLPerceiverTester(ArlowVLTester):
    projector = "perceiver"


class ArlowVLPerceiverTest(ArlowVLModelTest):
    model_tester_class = ArlowVLPerceiverTester
