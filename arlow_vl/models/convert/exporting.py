"""The text part of an Arlow model as a Llama folder; `gguf_writing` makes a GGUF file of it.

Cross-attention blocks, projector and encoder stay behind, and so do the tokens and rows that an import added: a decoder
that was frozen since then is exported with the bytes that were imported.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, TokenizersBackend

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.checkpoint_checks import read_object
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import settings_of_text
from arlow_vl.models.convert.added_tokens import without_additions
from arlow_vl.models.convert.llama_config import llama_config
from arlow_vl.models.convert.tensors import Tensors, common_dtype, first_rows, read_tensors, without_tied_head
from arlow_vl.models.folders import MODELS, check_folder, load_tokenizer, named, one_sentence, save_folder, text_name
from arlow_vl.printing import number_of

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TextPart:
    """The text part of a model, as it is exported."""

    folder: Path
    """The model folder that it comes from."""
    config: LlamaConfig
    tensors: Tensors
    """Tensors by Llama's names."""
    dtype: torch.dtype
    """Dtype of all tensors."""
    tokenizer: TokenizersBackend
    generation_config: GenerationConfig
    remarks: list[str]
    """Sentences on what stays behind, and on values that were rounded."""

    @property
    def rope(self) -> dict[str, Any]:
        return {"rope_type": "default"} | dict(self.config.rope_parameters or {})


def read_text_part(folder: Path, dtype: str | None = None) -> TextPart:
    """The decoder, its tokenizer and its settings, out of a model of either kind.

    `dtype` (of `DTYPES`) is that of the tensors; None: the one they have.

    Raises:
        CheckpointError: the folder holds no model of Arlow's, a damaged one, or one that is no Llama.
    """
    config_file = folder / "config.json"
    kind = read_object(config_file).get("model_type") if config_file.is_file() else None
    whole = check_folder(folder, kind if kind in MODELS else "arlow")
    if getattr(whole, "quantization_config", None) is not None:
        raise CheckpointError(f"{folder} holds quantised weights; export the model that they were made from")
    config = whole.get_text_config()
    tokenizer, rows = without_additions(load_tokenizer(folder), folder)
    rows = config.vocab_size if rows is None else rows
    if rows > config.vocab_size:
        raise CheckpointError(
            f"{folder}: tokenizer_config.json says that {rows:,} embedding rows were imported, the model has "
            f"{config.vocab_size:,}; take the tokenizer that was saved with the model"
        )
    tensors, remarks = first_rows(read_tensors(folder, text_name), rows), staying(kind, config, rows)
    tensors = without_tied_head(tensors, config, folder)
    target = getattr(torch, dtype) if dtype else common_dtype(tensors)
    tensors = rounded(tensors, target, folder, remarks)
    pad = tokenizer.pad_token_id
    return TextPart(
        folder,
        llama_config(config, folder, vocab_size=rows, pad_token_id=pad, dtype=target),
        tensors,
        target,
        tokenizer,
        generation_config_of(folder, rows),
        remarks,
    )


def staying(kind: str | None, config: ArlowConfig, rows: int) -> list[str]:
    """Sentences on the parts of the model that are not exported."""
    remarks = []
    if kind == "arlow_vl":
        remarks.append("only the text part is exported: encoder, projector and cross-attention blocks stay behind")
    elif config.cross_attention_layers:
        remarks.append("only the text part is exported: the cross-attention blocks stay behind")
    if rows < config.vocab_size:
        remarks.append(f"the embedding rows from {rows:,} on, which the import added, stay behind")
    return remarks


def rounded(tensors: Tensors, dtype: torch.dtype, folder: Path, remarks: list[str]) -> Tensors:
    """The tensors in one dtype. Raises CheckpointError for values that are too large for it."""
    converted, changed, large = {}, [], []
    for name, tensor in tensors.items():
        converted[name] = value = tensor.to(dtype)
        if dtype != tensor.dtype and not torch.equal(value.to(tensor.dtype), tensor):
            changed.append(name)
        if not all(math.isfinite(end) for end in value.aminmax()):
            large.append(name)
    if large:
        raise CheckpointError(f"{folder}: values of {named(large)} are too large for {dtype}; export as bfloat16")
    if changed:
        remarks.append(f"values of {len(changed):,} tensors were rounded to {str(dtype).removeprefix('torch.')}")
    return converted


def generation_config_of(folder: Path, rows: int) -> GenerationConfig:
    """The text model's settings, without tokens that are not exported."""
    if not (folder / "generation_config.json").is_file():
        return GenerationConfig()
    with one_sentence(folder, "generation_config.json"):
        settings = settings_of_text(GenerationConfig.from_pretrained(folder))
    if settings.pad_token_id is not None and settings.pad_token_id >= rows:
        settings.pad_token_id = None
    return settings


def export_llama(folder: Path, out: Path, *, dtype: str | None = None) -> list[str]:
    """Writes a folder that every tool for Llama reads, and returns sentences about it.

    Raises:
        CheckpointError: as `read_text_part`.
        ResourceError: `out` cannot be written.
    """
    part = read_text_part(folder, dtype)
    with one_sentence(folder, "the weights"):
        model = LlamaForCausalLM.from_pretrained(None, config=part.config, state_dict=part.tensors, dtype=part.dtype)
    model.generation_config = part.generation_config
    save_folder((model, part.tokenizer), out)
    return [f"{out}: Llama, {summary(part)}", *part.remarks]


def summary(part: TextPart) -> str:
    parameters = sum(tensor.numel() for tensor in part.tensors.values())
    dtype = str(part.dtype).removeprefix("torch.")
    tensors = number_of(len(part.tensors), "tensor")
    return f"{tensors}, {parameters:,} parameters in {dtype}, {len(part.tokenizer):,} tokens"
