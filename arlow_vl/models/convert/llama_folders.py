"""A folder of Llama's as a source: config.json, safetensors and a tokenizer, as save_pretrained writes them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, TokenizersBackend
from transformers.utils import is_sentencepiece_available

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.checkpoint_checks import INDEX, WEIGHTS, read_object, tensor_shapes
from arlow_vl.models.convert.added_tokens import plain_tokenizer
from arlow_vl.models.convert.gguf_tokens import sentencepiece_spaces
from arlow_vl.models.convert.sources import Source
from arlow_vl.models.convert.tensors import Tensors, decoder_name, read_tensors
from arlow_vl.models.folders import check_generation, one_sentence, refuse_non_finite

GENERATION = "generation_config.json"


def open_folder(folder: Path) -> Source:
    """Raises CheckpointError for a folder that lacks a file, or holds a damaged one."""
    for needed in ("config.json", WEIGHTS):
        if not (folder / needed).is_file() and not (needed == WEIGHTS and (folder / INDEX).is_file()):
            raise CheckpointError(f"{folder} holds no {needed}{hint(folder, needed)}")
    values = read_object(folder / "config.json")
    rows = values.get("vocab_size")
    if (folder / GENERATION).is_file() and type(rows) is int:
        check_generation(folder, rows)

    def read() -> Tensors:
        refuse_non_finite(folder)
        return read_tensors(folder, decoder_name)

    return Source(
        folder / "config.json",
        values,
        {name: shape for name, shape in tensor_shapes(folder).items() if decoder_name(name)},
        GenerationConfig.from_pretrained(folder) if (folder / GENERATION).is_file() else None,
        lambda: read_tokenizer(folder),
        read,
    )


def hint(folder: Path, needed: str) -> str:
    """The end of a sentence about a folder that lacks a file."""
    gguf = next(folder.glob("*.gguf"), None)
    if gguf is not None:
        return f"; name its GGUF file, {gguf.name}"
    if needed == WEIGHTS and any(folder.glob("*.bin")):
        return "; it holds PyTorch's .bin files, which run code when they are read: save it as safetensors first"
    return "; name a folder with Llama's config.json, tokenizer and safetensors"


def read_tokenizer(folder: Path) -> TokenizersBackend:
    """The tokenizer of tokenizer.json, else of what transformers can read; no code out of the folder is run."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(f"{folder} holds no tokenizer.json; copy the tokenizer's files beside the weights")
    # Not the class that the folder names: LlamaTokenizer, GPT2Tokenizer and others put rules of their own in the place
    # of the file's.
    is_json = (folder / "tokenizer.json").is_file()
    if not is_json and not is_sentencepiece_available():
        raise CheckpointError(
            f"{folder}: to read tokenizer.model, the package sentencepiece is needed: pip install sentencepiece"
        )
    kind: Any = TokenizersBackend if is_json else AutoTokenizer
    with one_sentence(folder, "the tokenizer"):
        source = kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return plain_tokenizer(source, folder, None if is_json else with_sentencepiece_spaces(source.backend_tokenizer))


def with_sentencepiece_spaces(backend: Tokenizer) -> Tokenizer:
    """What transformers makes of tokenizer.model, but a text that begins with a space gets one in front too.

    sentencepiece does so, and the tokenizer.json of Llama 2 by the same rules.
    """
    spec = json.loads(backend.to_str())
    match spec["pre_tokenizer"]:
        case {"type": "Metaspace", "prepend_scheme": "always" | "first", "split": False} if spec["normalizer"] is None:
            backend = Tokenizer.from_str(json.dumps(spec | {"pre_tokenizer": None}))
            backend.normalizer = sentencepiece_spaces(in_front=True)
    return backend
