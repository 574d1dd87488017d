"""The processor and the model it was made for: checked together, used together, saved together."""

import logging

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

import arlow_vl.models.auto  # noqa: F401
from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.folders import load_vision_language_model

VISION = {"timm_name": "test_vit", "image_size": 32}


def text_checkpoint(config, folder, **changes):
    config = type(config).from_dict(config.to_dict() | changes)
    ArlowForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(small_config, tmp_path):
    folder = text_checkpoint(small_config, tmp_path / "text")
    return ArlowVLForConditionalGeneration.from_text_checkpoint(folder, ArlowVisionConfig(**VISION)).eval()


@pytest.fixture
def processor(model):
    return ArlowProcessor(ArlowImageProcessor.of_model(model.config), ArlowTokenizerFast())


@pytest.mark.parametrize("had_blocks", [True, False])
def test_a_text_checkpoint_reports_just_what_it_did_not_have(small_config, tmp_path, had_blocks, caplog, monkeypatch):
    folder = text_checkpoint(small_config, tmp_path / "text", use_cross_attention=had_blocks)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.INFO):
        model = ArlowVLForConditionalGeneration.from_text_checkpoint(folder, ArlowVisionConfig(**VISION))
    report = next(record.getMessage() for record in caplog.records if "are new beside" in record.getMessage())
    new = set(report.partition(": ")[2].split(", "))
    parts = (".projector.", ".vision.") if had_blocks else (".projector.", ".vision.", ".cross_block.")
    assert new == {name for name in model.state_dict() if any(part in name for part in parts)}


def test_the_model_keeps_the_encoders_own_preprocessing(model):
    own = model.model.vision.data_config
    assert model.config.vision_config.transform["mean"] == list(own["mean"])
    assert model.config.vision_config.transform["input_size"] == [3, 32, 32]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0.1, 0.2, 0.3]}, "mean was .* and is"),
        ({"input_size": [3, 64, 64]}, "input_size was .* and is"),
        ({"background": [0, 0, 0]}, "background was .* and is"),
        ({"max_tiles": 4}, "max_tiles was 1 and is 4"),
    ],
)
def test_a_processor_of_another_model_is_refused_by_name(model, processor, change, message, tmp_path):
    fields = processor.image_processor.transform.to_dict() | change
    data_config = {key: fields.pop(key) for key in ("mean", "std", "input_size", "interpolation")}
    other = ArlowProcessor(ArlowImageProcessor(data_config, **fields), ArlowTokenizerFast())
    processor.check_fits(model.config)
    with pytest.raises(CheckpointError, match=message):
        other.check_fits(model.config)
    model.save_pretrained(tmp_path / "whole")
    other.save_pretrained(tmp_path / "whole")
    for load in (load_vision_language_model, AutoProcessor.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "whole")
    other.save_pretrained(tmp_path / "alone")
    AutoProcessor.from_pretrained(tmp_path / "alone")


def test_an_image_token_without_any_image_is_refused(model, processor):
    input_ids = processor.tokenizer("<image>a", return_tensors="pt").input_ids
    with pytest.raises(ValueError, match=r"holds 1 <image> .* but no images came"):
        model(input_ids)
    with pytest.raises(ValueError, match=r"holds 1 <image> .* but no images came"):
        model.generate(input_ids, max_new_tokens=2)


def test_a_text_turn_after_an_image_needs_none(model, processor):
    inputs = processor(text="<image>a", images=Image.new("RGB", (9, 9)), return_tensors="pt")
    cache = model(**inputs, use_cache=True).cache
    assert model(torch.tensor([[30, 31]]), cache=cache).logits.isfinite().all()


def test_a_file_url_is_its_file(processor, tmp_path):
    path = tmp_path / "an image.png"
    Image.new("RGB", (9, 5), "red").save(path)
    expected = processor.image_processor(path).pixel_values
    assert torch.equal(processor.image_processor(path.as_uri()).pixel_values, expected)


def test_a_row_may_have_eight_images_and_its_neighbour_none(model, processor):
    colours = ("red", "green", "blue", "white", "black", "gray", "pink", "navy")
    images = [Image.new("RGB", (9, 9), colour) for colour in colours]
    batch = processor(text=["<image>" * 8 + "a", "just text"], images=[images, []], padding=True, return_tensors="pt")
    assert model(**batch).logits.isfinite().all() and len(batch.pixel_values) == 8


def chat(image):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": content}]


def test_the_pipeline_answers_about_an_image_and_a_chat(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    ask = pipeline("image-text-to-text", model=str(tmp_path / "whole"))
    image = Image.new("RGB", (9, 5), "red")
    plain = ask(images=image, text="<image>What?", max_new_tokens=3)
    assert plain[0]["generated_text"].startswith("<image>What?")
    answer = ask(chat(image), max_new_tokens=3)[0]["generated_text"]
    assert [message["role"] for message in answer] == ["user", "assistant"]
    inputs = processor.apply_chat_template(
        chat(image), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    expected = model.generate(**inputs, max_new_tokens=3)[0, inputs.input_ids.shape[1] :]
    assert answer[1]["content"] == processor.decode(expected, skip_special_tokens=True)
