"""The vision-language model: built from a text checkpoint, and as one folder."""

import copy
import json
import pickle

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments

from arlow_vl.models.arlow.errors import CheckpointError
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from tests.conftest import open_gates
from vision.encoder import VisionEncoder
from vision.places import grid_places

IMAGE, SIZE = 7, 160


@pytest.fixture
def text_checkpoint(small_config, tmp_path):
    ArlowForCausalLM(small_config).save_pretrained(tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture
def vision_config():
    return ArlowVisionConfig(timm_name="test_vit", image_size=SIZE)


@pytest.fixture
def model(text_checkpoint, vision_config):
    return ArlowVLForConditionalGeneration.from_text_checkpoint(text_checkpoint, vision_config).eval()


@pytest.fixture
def inputs():
    input_ids = torch.randint(20, 300, (3, 7))
    input_ids[0, 1] = input_ids[2, 2] = input_ids[2, 3] = IMAGE
    return {"input_ids": input_ids, "pixel_values": torch.randn(3, 3, SIZE, SIZE)}


def blind(model, inputs):
    """Logits of the text alone: an `<image>` is a word where its embedding comes in place of its id."""
    return model(inputs_embeds=model.get_input_embeddings()(inputs["input_ids"])).logits


def test_a_text_checkpoint_becomes_a_vision_language_model_that_writes_as_before(model, text_checkpoint, inputs):
    text_model = ArlowForCausalLM.from_pretrained(text_checkpoint).eval()
    expected = text_model(inputs["input_ids"]).logits
    assert torch.equal(blind(model, inputs), expected)
    assert torch.equal(model(**inputs).logits, expected)


def test_the_head_of_a_large_vocabulary_rounds_as_the_text_models_does(small_config, vision_config, tmp_path):
    """Matrix kernels of two libraries agree on small products and differ in the last bit of large ones."""
    config = type(small_config).from_dict(small_config.to_dict() | {"hidden_size": 256, "vocab_size": 4096})
    text_model = ArlowForCausalLM(config).eval()
    text_model.save_pretrained(tmp_path)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path, vision_config).eval()
    input_ids = torch.randint(20, 4096, (3, 24))
    assert torch.equal(model(input_ids).logits, text_model(input_ids).logits)


def test_text_logits_stay_bit_for_bit_when_everything_but_the_decoder_has_been_trained(model, text_checkpoint, inputs):
    for name, parameter in model.named_parameters():
        if "cross_block" in name or ".projector." in name or ".vision." in name:
            parameter.data.add_(torch.randn_like(parameter))
    text_model = ArlowForCausalLM.from_pretrained(text_checkpoint).eval()
    text_logits, logits = text_model(inputs["input_ids"]).logits, model(**inputs).logits
    assert torch.equal(blind(model, inputs), text_logits)
    assert torch.equal(logits[1], text_logits[1])
    assert torch.equal(logits[0, :1], text_logits[0, :1])
    assert not torch.equal(logits[0, 1:], text_logits[0, 1:])


def test_a_text_checkpoint_without_cross_blocks_gets_closed_ones(small_config, tmp_path, vision_config, inputs):
    config = type(small_config).from_dict(small_config.to_dict() | {"use_cross_attention": False})
    text_model = ArlowForCausalLM(config).eval()
    text_model.save_pretrained(tmp_path)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path, vision_config).eval()
    assert model.gate_openings() == {1: (0.0, 0.0), 3: (0.0, 0.0)}
    assert torch.equal(model(**inputs).logits, text_model(inputs["input_ids"]).logits)


def test_gates_open_as_far_as_asked_and_text_without_images_stays(model, text_checkpoint, inputs):
    text_logits = ArlowForCausalLM.from_pretrained(text_checkpoint).eval()(inputs["input_ids"]).logits
    model.open_gates(0.75)
    assert model.gate_openings() == {layer: pytest.approx((0.75, 0.75)) for layer in (1, 3)}
    logits = model(**inputs).logits
    assert torch.equal(blind(model, inputs), text_logits)
    assert torch.equal(logits[1], text_logits[1])
    assert not torch.equal(logits[0], text_logits[0])
    model.open_gates(0.0)
    assert torch.equal(model(**inputs).logits, text_logits)


@pytest.mark.parametrize("initializer_range", [0.002, 0.02, 0.2])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_an_mlp_starts_with_tokens_of_about_one_size(small_config, vision_config, tmp_path, initializer_range, scale):
    small_config.initializer_range = initializer_range
    ArlowForCausalLM(small_config).save_pretrained(tmp_path)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path, vision_config)
    features = scale * torch.randn(4, 9, model.model.vision.embed_dim)
    tokens = model.model.encode_images(image_features=features).states
    assert 0.4 < tokens.std() < 1.0


def test_features_computed_earlier_stand_in_for_pixels(model, inputs):
    open_gates(model)
    features = model.model.vision(inputs["pixel_values"])
    torch.testing.assert_close(model(inputs["input_ids"], image_features=features).logits, model(**inputs).logits)


def test_one_folder_holds_the_whole_model(model, inputs, tmp_path):
    open_gates(model)
    model.save_pretrained(tmp_path)
    loaded = ArlowVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_a_convolutional_encoder_works_too(text_checkpoint, tmp_path):
    vision_config = ArlowVisionConfig(timm_name="test_efficientnet", image_size=64)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(text_checkpoint, vision_config).eval()
    open_gates(model)
    model.save_pretrained(tmp_path)
    loaded = ArlowVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = {"input_ids": torch.tensor([[1, IMAGE, 30]]), "pixel_values": torch.randn(1, 3, 64, 64)}
    # loading changes the memory layout of convolutions, and with it the order of their sums
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_tables_that_no_checkpoint_holds_are_computed_anew(small_config, tmp_path):
    vision_config = ArlowVisionConfig(timm_name="eva02_tiny_patch14_224", image_size=56)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=small_config, vision_config=vision_config))
    model.save_pretrained(tmp_path)
    loaded = ArlowVLForConditionalGeneration.from_pretrained(tmp_path)
    tables = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    assert any("vision" in name for name in tables)
    for name in tables:
        assert torch.equal(model.get_buffer(name), loaded.get_buffer(name)), name


@pytest.mark.parametrize("lacks", ["norm", ""], ids=["some", "all"])
def test_what_a_checkpoint_lacks_of_the_encoder_gets_timms_initial_values(small_config, tmp_path, lacks):
    """Left to itself, `from_pretrained` gives memory as it finds it."""
    config = ArlowVLConfig(
        text_config=small_config, vision_config=ArlowVisionConfig(timm_name="test_efficientnet", image_size=32)
    )
    model = ArlowVLForConditionalGeneration(config)
    for name, tensor in model.model.vision.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor))
        assert name.startswith("backbone.")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    missing = {name for name in saved if ".vision." in name and lacks in name}
    save_file({k: x for k, x in saved.items() if k not in missing}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, report = ArlowVLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == missing
    initial = {f"model.vision.{k}": x for k, x in VisionEncoder("test_efficientnet").state_dict().items()}
    for name, tensor in loaded.state_dict().items():
        if name in missing:
            spreads = [float(x.float().std(correction=0)) for x in (tensor, initial[name])]
            assert spreads[0] == pytest.approx(spreads[1], rel=0.5), name  # random, of one distribution
            assert float(tensor.float().mean()) == pytest.approx(float(initial[name].float().mean()), abs=0.2), name
        else:
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_the_output_tells_what_the_encoder_gave_and_what_the_decoder_read(model, inputs):
    seen = model(**inputs).image_outputs
    assert torch.equal(seen.last_hidden_state, model.model.vision(inputs["pixel_values"]))
    places = grid_places(SIZE // 16, SIZE // 16)
    assert torch.equal(seen.pooler_output, model.model.projector(seen.last_hidden_state, places))
    assert model(inputs["input_ids"][1:2]).image_outputs is None


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_images_projects_them_once(model, inputs, beams):
    open_gates(model)
    calls = []
    model.model.projector.register_forward_hook(lambda *_: calls.append(1))
    settings = {"attention_mask": torch.ones_like(inputs["input_ids"]), "max_new_tokens": 4, "do_sample": False}
    settings |= {"num_beams": beams, "eos_token_id": None}
    cached = model.generate(**inputs, **settings)
    assert len(calls) == 1
    assert torch.equal(cached, model.generate(**inputs, **settings, use_cache=False))


def test_drafts_of_the_first_layers_change_no_token_behind_images(model, inputs):
    open_gates(model)
    before = model.config.to_dict()
    inputs = {"input_ids": inputs["input_ids"][:1], "pixel_values": inputs["pixel_values"][:1]}
    settings = {"attention_mask": torch.ones_like(inputs["input_ids"]), "max_new_tokens": 6, "do_sample": False}
    settings["eos_token_id"] = None
    drafted = model.generate(**inputs, **settings, assistant_early_exit=1)
    assert torch.equal(drafted, model.generate(**inputs, **settings))
    assert model.config.to_dict() == before and "num_hidden_layers" not in before


@pytest.mark.parametrize("part", ["vision", "projector", "language_model"])
def test_a_part_in_another_dtype_reads_what_the_others_give(model, inputs, part):
    open_gates(model)
    expected = model(**inputs).logits
    getattr(model.model, part).bfloat16()
    if part == "language_model":
        model.lm_head.bfloat16()
    features = model.model.vision(inputs["pixel_values"].to(model.model.vision.dtype))
    for images in ({"pixel_values": inputs["pixel_values"]}, {"image_features": features}):
        logits = model(inputs["input_ids"], **images).logits
        assert logits.dtype == (torch.bfloat16 if part == "language_model" else torch.float32)
        torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)  # bfloat16 has 8 bits


def test_pixels_and_features_together_are_refused(model, inputs):
    with pytest.raises(ValueError, match="pixel_values or image_features"):
        model(**inputs, image_features=torch.zeros(3, 4, 64))


def test_another_number_of_images_than_image_tokens_is_refused(model, inputs):
    with pytest.raises(ValueError, match=r"2 images for 3 <image> tokens \(per row: \[1, 0, 2\]\)"):
        model(inputs["input_ids"], pixel_values=inputs["pixel_values"][:2])


def test_the_config_survives_the_trip_through_its_file(vision_config, small_config, tmp_path):
    config = ArlowVLConfig(text_config=small_config, vision_config=vision_config)
    config.save_pretrained(tmp_path)
    loaded = ArlowVLConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.get_text_config().hidden_size == 64


def test_tying_is_one_value_for_the_whole_model_and_its_decoder(vision_config, small_config, tmp_path):
    config = ArlowVLConfig(text_config=small_config, vision_config=vision_config)
    config.save_pretrained(tmp_path)
    assert config.tie_word_embeddings and json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    asked = ArlowVLConfig.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert not asked.text_config.tie_word_embeddings
    for twin in (copy.deepcopy(asked), pickle.loads(pickle.dumps(asked)), ArlowVLConfig.from_dict(asked.to_dict())):
        assert not twin.tie_word_embeddings and not twin.to_dict()["tie_word_embeddings"]
    config.text_config.tie_word_embeddings = False
    assert not config.tie_word_embeddings
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        ArlowVLConfig.from_dict(asked.to_dict() | {"text_config": {}, "tie_word_embeddings": "yes"})


def test_a_folder_names_the_auto_classes_that_open_it_as_trl_looks_for_them(model, tmp_path):
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    earlier = saved | {"auto_map": {"AutoConfig": saved["auto_map"]["AutoConfig"]}}
    for values in (saved, earlier):
        (tmp_path / "config.json").write_text(json.dumps(values))
        named = transformers.AutoConfig.from_pretrained(tmp_path).auto_map
        assert named.keys() == {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"}
    for auto_class, entry in named.items():
        opened = getattr(transformers, auto_class).from_pretrained(tmp_path, trust_remote_code=True)
        assert type(opened).__module__.startswith("arlow_vl.") and entry == f"needs_arlow_vl.{type(opened).__name__}"


@pytest.mark.parametrize("said", ["as peft says it", "as earlier files do", "nowhere"])
def test_a_head_that_was_trained_apart_survives_files_and_the_text_model(model, inputs, tmp_path, said):
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    if said != "nowhere":
        model.config.tie_word_embeddings = False
    expected = model(inputs["input_ids"][1:2]).logits
    model.save_pretrained(tmp_path / "whole")
    if said == "as earlier files do":
        saved = json.loads((tmp_path / "whole" / "config.json").read_text())
        saved["text_config"]["tie_word_embeddings"] = True
        (tmp_path / "whole" / "config.json").write_text(json.dumps(saved))
    loaded = ArlowVLForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    loaded.text_model().save_pretrained(tmp_path / "text")
    text_model = ArlowForCausalLM.from_pretrained(tmp_path / "text").eval()
    assert not loaded.config.tie_word_embeddings and not text_model.config.tie_word_embeddings
    for one in (loaded, model.text_model(), text_model):
        assert torch.equal(one(inputs["input_ids"][1:2]).logits, expected)


def test_a_head_that_is_the_embedding_stays_it_whatever_the_configuration_says(model, inputs, tmp_path):
    """transformers and accelerate tell people to set it to False; weights that are shared are saved once."""
    expected = model(inputs["input_ids"][1:2]).logits
    model.config.tie_word_embeddings = False
    model.text_model().save_pretrained(tmp_path / "text")
    model.save_pretrained(tmp_path / "whole")
    for model_class, name in ((ArlowForCausalLM, "text"), (ArlowVLForConditionalGeneration, "whole")):
        loaded = model_class.from_pretrained(tmp_path / name).eval()
        assert torch.equal(loaded(inputs["input_ids"][1:2]).logits, expected)


def test_a_text_model_of_a_head_apart_is_taken_without_comparing_weights(small_config, vision_config):
    small_config.tie_word_embeddings = False
    config = ArlowVLConfig(text_config=small_config, vision_config=vision_config)
    with torch.device("meta"):
        text_model = ArlowVLForConditionalGeneration(config).text_model()
    assert not text_model.config.tie_word_embeddings


def test_another_models_configuration_stays_as_it_is(small_config, vision_config):
    config = ArlowVLConfig(text_config=small_config, vision_config=vision_config, tie_word_embeddings=False)
    assert small_config.tie_word_embeddings and not config.text_config.tie_word_embeddings


def test_a_text_checkpoint_whose_head_differs_from_its_embedding_keeps_both(small_config, vision_config, tmp_path):
    text_model = ArlowForCausalLM(small_config).eval()
    text_model.lm_head.weight = nn.Parameter(torch.randn_like(text_model.lm_head.weight))
    text_model.save_pretrained(tmp_path)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path, vision_config).eval()
    input_ids = torch.randint(20, 300, (2, 5))
    assert torch.equal(model(input_ids).logits, text_model(input_ids).logits)


@pytest.mark.parametrize("part", ["whole", "vision_config"])
def test_an_attribute_that_is_no_field_is_not_saved(vision_config, small_config, tmp_path, part):
    config = ArlowVLConfig(text_config=small_config, vision_config=vision_config)
    (config if part == "whole" else config.vision_config).my_note = 1
    config.save_pretrained(tmp_path)
    assert "my_note" not in (tmp_path / "config.json").read_text()
    ArlowVLConfig.from_pretrained(tmp_path)


def test_gradients_reach_projector_and_gates_but_not_a_frozen_encoder(model, inputs):
    open_gates(model)
    model.model.vision.requires_grad_(False)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(parameter.grad.any() for parameter in model.model.projector.parameters())
    assert all(parameter.grad is None for parameter in model.model.vision.parameters())


def test_zero_images_are_as_if_none_came(model, inputs):
    """As an image processor gives them for a batch of text alone, in each of the forms."""
    ids, none = torch.randint(20, 300, (2, 7)), torch.zeros(0, dtype=torch.long)
    expected = model(ids).logits
    width = model.model.vision.embed_dim
    for nothing in (
        {"pixel_values": torch.zeros(0, 3, SIZE, SIZE)},
        {"pixel_values": torch.zeros(0, 3, SIZE, SIZE), "tiles_per_image": none, "tile_ids": none},
        {"pixel_values": torch.zeros(0, 48), "image_grids": none.view(0, 2)},
        {"image_features": torch.zeros(0, 4, width)},
        {"image_features": torch.zeros(0, width), "encoder_lengths": none},
    ):
        output = model(ids, **nothing)
        assert torch.equal(output.logits, expected) and output.image_outputs is None
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False, "num_beams": 2}
        assert torch.equal(model.generate(ids, **nothing, **settings), model.generate(ids, **settings))
        with pytest.raises(ValueError, match=r"the text holds 3 <image> .* but no images came"):
            model(inputs["input_ids"], **nothing)


def test_a_masked_image_token_asks_for_no_image(model, inputs):
    ids = inputs["input_ids"][:1]
    mask = (ids != IMAGE).long()
    assert model(ids, attention_mask=mask).logits.isfinite().all()


def test_a_checkpoint_of_a_time_without_places_is_refused_by_name(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.projector.place_embedding.scale"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{tmp_path} was trained before image tokens had places .* train the"):
        ArlowVLForConditionalGeneration.from_pretrained(tmp_path)


def test_where_something_lies_in_an_image_counts(model, inputs):
    """With tokens that know nothing of their place: the encoder's, in another order."""
    open_gates(model)
    features = model.model.vision(inputs["pixel_values"])
    here, there = (model(inputs["input_ids"], image_features=x).logits for x in (features, features.flip(1)))
    assert not torch.allclose(here, there, atol=1e-4)


def test_transformers_trainer_leaves_the_statistics_of_batch_norms(text_checkpoint, tmp_path):
    vision_config = ArlowVisionConfig(timm_name="test_efficientnet", image_size=64)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(text_checkpoint, vision_config)
    before = {key: value.clone() for key, value in model.named_buffers() if "running" in key}
    row = {"input_ids": torch.tensor([1, IMAGE, 9, 9]), "labels": torch.tensor([-100, -100, 9, 9])}
    rows = [row | {"pixel_values": torch.randn(3, 64, 64)} for _ in range(4)]
    options = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
    }
    Trainer(model, TrainingArguments(tmp_path / "run", **options), train_dataset=rows).train()
    assert before and all(torch.equal(model.get_buffer(key), value) for key, value in before.items())
