"""A Llama-shaped checkpoint before its weights are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, TokenizersBackend

from arlow_vl.models.convert.tensors import Tensors


@dataclass(frozen=True)
class Source:
    """A Llama-shaped checkpoint to import: its configuration and shapes, and functions that read the rest."""

    place: Path
    """The file that messages name: config.json, or the GGUF file."""
    config: Mapping[str, Any]
    """Values as in Llama's config.json."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of its tensors, by Llama's names."""
    generation_config: GenerationConfig | None
    read_tokenizer: Callable[[], TokenizersBackend]
    read_tensors: Callable[[], Tensors]
