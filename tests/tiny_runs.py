"""Tiny data and recipes that the tests of loading and training share."""

import functools
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast, train_tokenizer
from vision.encoder import VisionEncoder

SAMPLES = Path(__file__).parent / "samples"
WORDS = "the cat sat on a mat and saw one big red dog run over green hills while small birds sing in old trees".split()
TINY_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "cross_attention_interval": 2,
    "attention_dropout": 0.1,
}

LONG = {"max_position_embeddings": 128}
"""For texts with images, which have `max_length` tokens."""


def sentences(count: int) -> list[str]:
    dice = random.Random(0)
    return [" ".join(dice.choices(WORDS, k=dice.randint(5, 40))) + "." for _ in range(count)]


@functools.cache
def tiny_tokenizer() -> ArlowTokenizerFast:
    return train_tokenizer(sentences(50), vocab_size=300)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "source": "test"}) + "\n" for text in texts))
    return path


def write_text_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of 12 steps in `folder/text.yaml`, with its tokenizer and texts beside it."""
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    texts = sentences(60)
    values = {
        "stage": "text",
        "run_dir": str(folder / "run"),
        "tokenizer": str(folder / "tokenizer"),
        "model": TINY_MODEL,
        "train_text": str(write_jsonl(folder / "train.jsonl", texts[:50])),
        "validation_text": str(write_jsonl(folder / "validation.jsonl", texts[50:])),
        "packed_folder": str(folder / "packed"),
        "row_length": 32,
        "batch_size": 3,
        "policy": {"decoder": "train", "cross_attention": "frozen"},
        "run": {
            "max_steps": 12,
            "validate_every": 4,
            "checkpoint_every": 3,
            "accumulate_grad_batches": 2,
            "validation_samples": 6,
            "threads": 1,  # on busy cores two threads wait for each other
            "watch": {"show_samples": 0},  # what is written costs more than what is trained
        },
        "optim": {"lr": 3e-3, "warmup_steps": 2},
    }
    path = folder / "text.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def write_text_checkpoint(folder: Path, **changes: Any) -> Path:
    """A random text model with its tokenizer."""
    torch.manual_seed(0)
    ArlowForCausalLM(ArlowConfig(vocab_size=len(tiny_tokenizer()), **TINY_MODEL | changes)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_encoder_weights(path: Path, timm_name: str = "test_efficientnet") -> Path:
    """Random weights, by default of timm's smallest net that has batch norms, which must not move when frozen."""
    torch.manual_seed(0)
    save_file(VisionEncoder(timm_name).backbone.state_dict(), path)
    return path


def write_image_text_recipe(folder: Path, *, text_model: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A recipe of 6 steps in `folder/image_text.yaml` on the real samples: captions and questions, a frozen encoder."""

    def source(name: str, split: str, kind: str, samples: int) -> dict[str, Any]:
        data = str(SAMPLES / split)
        return {"name": name, "data": data, "kind": kind, "samples_per_batch": samples}

    values = {
        "stage": "image_text",
        "run_dir": str(folder / "run"),
        "text_checkpoint": str(write_text_checkpoint(folder / "text", **LONG | (text_model or {}))),
        "vision": {
            "timm_name": "test_efficientnet",
            "weights": str(write_encoder_weights(folder / "encoder.safetensors")),
            "image_size": 64,
        },
        "sources": [
            source("captions", "captions/train-*.tar", "captions", 2),
            source("questions", "easy-vqa/train-*.tar", "questions", 3),
        ],
        "validation_sources": [
            source("captions", "captions/validation-*.tar", "captions", 2),
            source("questions", "easy-vqa/validation-*.tar", "questions", 4),
        ],
        "policy": {"vision": "frozen", "projector": "train", "cross_attention": "train", "decoder": "frozen"},
        "run": {
            "max_steps": 6,
            "validate_every": 3,
            "checkpoint_every": 2,
            "threads": 1,
            "validation_samples": 4,
            "watch": {"show_samples": 0},
        },
        "optim": {"lr": 1e-2},
        "cache_features": str(folder / "features"),
    }
    path = folder / "image_text.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def weights_sha256(product: Path) -> str:
    return hashlib.sha256((product / "model.safetensors").read_bytes()).hexdigest()
