"""The text part of an Arlow model as a Llama folder; `gguf_writing` makes a GGUF file of it.

Cross-attention blocks, projector and encoder stay behind, and so do the tokens and rows that an import added: a decoder
that was frozen since then is exported with the bytes that were imported.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, TokenizersBackend

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.checkpoint_checks import read_object
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import settings_of_text
from arlow_vl.models.convert.added_tokens import refuse_missing_rows, without_additions
from arlow_vl.models.convert.llama_config import llama_config
from arlow_vl.models.convert.tensors import Tensors, common_dtype, read_tensors, rows_of, without_tied_head
from arlow_vl.models.convert.unread_settings import drop_unread
from arlow_vl.models.folder_hashes import text_name
from arlow_vl.models.folder_writing import save_folder
from arlow_vl.models.folders import MODELS, TOKEN_IDS, check_folder, load_tokenizer, named, one_sentence
from arlow_vl.printing import number_of, visible

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
    whole = check_folder(folder, kind if kind in MODELS else "arlow", may_be_quantised=False)
    config = whole.get_text_config()
    own = load_tokenizer(folder)
    tokenizer, rows = without_additions(own, folder)
    ids_out = exported_ids(own, tokenizer, config.vocab_size if rows is None else rows, config.vocab_size, folder)
    tensors, remarks = rows_of(read_tensors(folder, text_name), ids_out.index), staying(kind, config, ids_out)
    tensors = without_tied_head(tensors, config, folder)
    target = getattr(torch, dtype) if dtype else common_dtype(tensors)
    tensors = rounded(tensors, target, folder, remarks)
    ids = {f"{role}_token_id": ids_out.moved(getattr(config, f"{role}_token_id")) for role in ("bos", "eos")}
    ids |= {"pad_token_id": tokenizer.pad_token_id}
    return TextPart(
        folder,
        llama_config(config, folder, vocab_size=ids_out.rows, **ids, dtype=target),
        tensors,
        target,
        tokenizer,
        generation_config_of(folder, ids_out),
        remarks,
    )


@dataclass(frozen=True)
class ExportedIds:
    """Embedding rows that are exported, and their ids: tokens behind those that the import added move up."""

    rows: int
    """Number of exported rows."""
    new_ids: dict[int, int | None]
    """New id of each id that changes; None if its token is not exported."""
    moves: list[str]
    """Tokens that move up, as `<loc0> to 320`."""

    @property
    def index(self) -> Tensor:
        """(rows,) present id of each exported row."""
        index = torch.arange(self.rows)
        for old, new in self.new_ids.items():
            if new is not None:
                index[new] = old
        return index

    def moved(self, ids: Any) -> Any:
        """Maps an id, or a list of ids or of id sequences, to the new ids, without those that are not exported."""
        if isinstance(ids, list):
            moved = [self.moved(part) for part in ids]
            if all(isinstance(part, list) for part in ids):  # a sequence is kept or dropped as a whole
                return [new for old, new in zip(ids, moved, strict=True) if len(new) == len(old)]
            return [new for new in moved if new is not None]
        new = self.new_ids.get(ids, ids)
        return None if new is None or new >= self.rows else new


def exported_ids(
    own: TokenizersBackend, tokenizer: TokenizersBackend, imported: int, rows: int, place: Path
) -> ExportedIds:
    """Compares the model's `own` tokenizer with the exported one.

    Args:
        imported: Embedding rows that the imported source had, of the model's `rows`.

    Raises:
        CheckpointError: the model has fewer rows than were imported, or than the tokenizer has tokens.
    """
    if imported > rows:
        raise CheckpointError(
            f"{place}: tokenizer_config.json says that {imported:,} embedding rows were imported, the model has "
            f"{rows:,}; take the tokenizer that was saved with the model"
        )
    before, after = own.get_vocab(), tokenizer.get_vocab()
    refuse_missing_rows(before, rows, place)
    in_order = sorted(before.items(), key=lambda item: item[1])
    changed = {token: index for token, index in in_order if after.get(token) != index}
    moves = [f"{visible(token):.40} to {after[token]:,}" for token in changed if token in after]
    needed = max([imported, *(index + 1 for index in after.values())])
    return ExportedIds(needed, {index: after.get(token) for token, index in changed.items()}, moves)


def staying(kind: str | None, config: ArlowConfig, ids_out: ExportedIds) -> list[str]:
    """Sentences on the parts of the model that are not exported, or get other ids."""
    remarks = []
    if kind == "arlow_vl":
        remarks.append("only the text part is exported: encoder, projector and cross-attention blocks stay behind")
    elif config.cross_attention_layers:
        remarks.append("only the text part is exported: the cross-attention blocks stay behind")
    if ids_out.moves:
        remarks.append(f"the tokens that the import added stay behind, so that ids change: {named(ids_out.moves)}")
    elif ids_out.rows < config.vocab_size:
        remarks.append(f"the embedding rows from {ids_out.rows:,} on, which the import added, stay behind")
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


def generation_config_of(folder: Path, ids_out: ExportedIds) -> GenerationConfig:
    """The text model's settings that something reads, with the ids of exported tokens, without other tokens."""
    if not (folder / "generation_config.json").is_file():
        return GenerationConfig()
    with one_sentence(folder, "generation_config.json"):
        settings = settings_of_text(GenerationConfig.from_pretrained(folder))
    drop_unread(settings)
    for name in (*TOKEN_IDS, "bad_words_ids"):
        if getattr(settings, name, None) is not None:
            ids = ids_out.moved(getattr(settings, name))
            setattr(settings, name, None if ids == [] else ids)
    if settings.sequence_bias:
        biases = [[ids_out.moved(ids), ids, bias] for ids, bias in settings.sequence_bias]
        settings.sequence_bias = [[new, bias] for new, ids, bias in biases if len(new) == len(ids)] or None
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
