"""A tiny vision-language model with open gates, and test sets in the true formats, made once a session."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.auto import ArlowImageProcessor, ArlowProcessor, ArlowVLForConditionalGeneration
from arlow_vl.models.folder_writing import save_folder
from tests.conftest import open_gates
from tests.tiny_runs import TINY_MODEL, tiny_tokenizer

COLOURS = ("red", "blue", "green", "white", "black", "yellow")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A random model whose answers depend on the image."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    text = ArlowForCausalLM(
        ArlowConfig(vocab_size=len(tiny_tokenizer()), **TINY_MODEL | {"max_position_embeddings": 1024})
    )
    text.save_pretrained(folder / "text")
    tiny_tokenizer().save_pretrained(folder / "text")
    vision = ArlowVisionConfig(timm_name="test_vit", image_size=64)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(folder / "text", vision).eval()
    open_gates(model)
    model.stop_also_at(range(20, len(tiny_tokenizer()), 4))  # answers of some tokens, which ends at once
    processor = ArlowProcessor(ArlowImageProcessor.of_model(model.config), tiny_tokenizer())
    save_folder([model, processor], folder / "hf")
    return folder / "hf"


def image_bytes(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, files: dict) -> Path:
    """Files by name: bytes, text, or a value as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def images(pattern: str) -> dict[str, bytes]:
    """An image of each colour, under the pattern with its number."""
    return {pattern.format(number): image_bytes(colour) for number, colour in enumerate(COLOURS)}


def lines(values: list) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)
