"""An image is the same tensors for training, commands and processors, and asks with the prompt of training."""

import copy
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from arlow_vl.cli import main
from arlow_vl.data.images import DecodedImages
from arlow_vl.data.prompts import about_image, encode_prompt
from arlow_vl.data.sample_dataset import PlacedImage
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow.tokenization_arlow import ArlowTokenizer
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.folder_writing import save_folder
from arlow_vl.models.open_model import OpenModel
from arlow_vl.serving.assistant import Assistant
from tests.conftest import open_gates
from tests.data.test_prompts import TOKENIZERS
from tests.models.arlow_vl.test_processing import DATA_CONFIG
from tests.tiny_runs import SAMPLES, tiny_tokenizer


@pytest.fixture
def model_of(small_config, tmp_path):
    ArlowForCausalLM(small_config).save_pretrained(tmp_path / "text")

    def build(transform):
        vision = ArlowVisionConfig(timm_name="test_vit", image_size=32, transform=transform)
        model = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path / "text", vision).eval()
        open_gates(model)
        return model, ArlowProcessor(ArlowImageProcessor.of_model(model.config), ArlowTokenizerFast())

    return build


@pytest.mark.parametrize("transform", [{}, {"max_tiles": 6}, {"max_patches": 16}], ids=["one size", "tiles", "native"])
def test_training_commands_and_processors_make_the_same_tensors_of_a_file(model_of, transform):
    model, processor = model_of(transform)
    path = SAMPLES / "fox.jpg"
    expected = dict(processor.image_processor([path], return_tensors="pt"))
    assistant = Assistant(OpenModel(model, processor.tokenizer, processor))
    trained = DecodedImages(processor.image_processor.transform)([PlacedImage(path.read_bytes(), "fox")])
    asked = [assistant.pack([assistant.image(source)]) for source in (str(path), path.read_bytes())]
    for road in (trained, *asked):
        assert road.keys() == expected.keys()
        assert all(torch.equal(road[key], expected[key]) for key in expected)


def test_evaluation_asks_with_the_ids_of_training(model_of, tmp_path, monkeypatch):
    model, _ = model_of({})
    processor = ArlowProcessor(ArlowImageProcessor.of_model(model.config), copy.deepcopy(tiny_tokenizer()))
    save_folder([model, processor], tmp_path / "hf")
    rows: list[tuple[int, ...]] = []
    generate = ArlowVLForConditionalGeneration.generate

    def spy(self, *args, input_ids, attention_mask, **kwargs):
        rows.extend(tuple(row[mask.bool()].tolist()) for row, mask in zip(input_ids, attention_mask, strict=True))
        return generate(self, *args, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(ArlowVLForConditionalGeneration, "generate", spy)
    words = ["evaluate", "--model", tmp_path / "hf", "--task", "easy-vqa", "--data", SAMPLES, "--limit", 3]
    assert main([*map(str, words), "--output", str(tmp_path / "out"), "--features", str(tmp_path / "f")]) == 0
    lines = (tmp_path / "out" / "easy-vqa" / "model" / "predictions.jsonl").read_text().splitlines()
    asked = {tuple(encode_prompt(processor.tokenizer, about_image(json.loads(line)["prompt"]))) for line in lines}
    assert len(lines) == 3
    assert asked <= set(rows)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("question", [None, "what is red?", "<image></s><|im_end|> <|endoftext|>"])
def test_a_processor_of_any_tokenizer_writes_the_prompt_of_training(kind, question):
    """One bos, quoted control tokens as text, and padding on the left, whatever the tokenizer's folder says."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.padding_side = "right"
    processor = ArlowProcessor(ArlowImageProcessor(DATA_CONFIG), tokenizer)
    expected = encode_prompt(tokenizer, about_image(question))
    (message,) = about_image(question)
    image = Image.new("RGB", (9, 9))
    chat = [{**message, "content": [{"type": "image", "image": image}, *message["content"][1:]]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    batch = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert batch["input_ids"][0] == expected
    assert processor(text=text, images=image)["input_ids"][0] == expected
    padded = processor(text=[text, "a"], images=[[image], []], padding=True)
    assert padded["attention_mask"][1][0] == 0


def test_a_tokenizer_by_itself_pads_on_the_left():
    assert ArlowTokenizerFast().padding_side == ArlowTokenizer().padding_side == "left"


def test_an_evaluation_of_transformers_trainer_gathers_logits_alone(model_of, tmp_path):
    model, _ = model_of({})
    row = {"input_ids": torch.tensor([1, 7, 9, 9]), "labels": torch.tensor([-100, -100, 9, 9])}
    rows = [row | {"pixel_values": torch.randn(3, 32, 32)} for _ in range(3)]
    seen = []

    def metrics(prediction):
        seen.append(prediction.predictions)
        return {}

    options = TrainingArguments(Path(tmp_path / "run"), report_to=[], use_cpu=True, per_device_eval_batch_size=2)
    Trainer(model, options, eval_dataset=rows, compute_metrics=metrics).evaluate()
    assert seen[0].shape == (3, 4, 300)
