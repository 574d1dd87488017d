"""Recipes of the runs of several processes: heads that two can share, no dropout (parts of heads draw differently),
four batches a step, and among them some without an image."""

from pathlib import Path
from typing import Any

import yaml

from tests.tiny_runs import (
    SAMPLES,
    sentences,
    write_encoder_weights,
    write_image_text_recipe,
    write_jsonl,
    write_text_recipe,
)

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "attention_dropout": 0.0}


def write_shared_text(folder: Path) -> str:
    return _changed(
        write_text_recipe(folder), {"model": HEADS, "optim": {"ema": 0.9}, "run": {"accumulate_grad_batches": 4}}
    )


def write_shared_image_text(folder: Path) -> str:
    """An encoder that is trained, in packed rows of which many hold text alone."""
    path = write_image_text_recipe(folder, text_model=HEADS)
    write_encoder_weights(folder / "encoder.safetensors", "test_vit")
    text = str(write_jsonl(folder / "text.jsonl", sentences(200)))
    captions = {"name": "captions", "data": str(SAMPLES / "captions/train-*.tar"), "kind": "captions", "weight": 0.15}
    return _changed(
        path,
        {
            "vision": {"timm_name": "test_vit"},
            "cache_features": None,
            "max_length": 64,
            "packing": {"row_tokens": 128, "row_images": 3, "rows_per_batch": 1},
            "policy": {"vision": "train"},
            "run": {"accumulate_grad_batches": 4},
            "sources": [captions, {"name": "text", "data": text, "kind": "text", "weight": 0.85}],
        },
    )


def _changed(path: Path, changes: dict[str, Any]) -> str:
    values = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) and isinstance(values.get(key), dict) else value
    path.write_text(yaml.safe_dump(values))
    return str(path)
