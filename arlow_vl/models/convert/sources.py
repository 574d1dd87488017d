"""What is known of a checkpoint of another make before a weight is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, TokenizersBackend

from arlow_vl.models.convert.tensors import Tensors


@dataclass(frozen=True)
class Source:
    """A checkpoint of another make."""

    place: Path
    """What messages name: its config.json, or the GGUF file."""
    config: Mapping[str, Any]
    """As Llama's config.json has it."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of its tensors, by Llama's names."""
    generation_config: GenerationConfig | None
    read_tokenizer: Callable[[], TokenizersBackend]
    read_tensors: Callable[[], Tensors]
