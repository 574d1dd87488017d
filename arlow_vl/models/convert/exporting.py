"""The text part of an Arlow model as a Llama folder; `gguf_writing` makes a GGUF file of it.

Cross-attention blocks, projector and encoder stay behind, and so do the tokens and rows that an import added: a decoder
that was frozen since then leaves with the bytes that it came with.
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
from arlow_vl.models.convert.tensors import Tensors, common_dtype, read_tensors, rows_of, untie_nothing
from arlow_vl.models.folders import (
    MODELS,
    TOKEN_IDS,
    check_folder,
    load_tokenizer,
    named,
    one_sentence,
    save_folder,
    text_name,
)
from arlow_vl.printing import number_of, visible

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TextPart:
    """What leaves."""

    folder: Path
    """Where it comes from."""
    config: LlamaConfig
    tensors: Tensors
    """By Llama's names."""
    dtype: torch.dtype
    """Of all tensors."""
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
    leaving = leaving_ids(own, tokenizer, config.vocab_size if rows is None else rows, config.vocab_size, folder)
    tensors, remarks = rows_of(read_tensors(folder, text_name), leaving.index), staying(kind, config, leaving)
    tensors = untie_nothing(tensors, config, folder)
    target = getattr(torch, dtype) if dtype else common_dtype(tensors)
    tensors = rounded(tensors, target, folder, remarks)
    ids = {f"{role}_token_id": leaving.moved(getattr(config, f"{role}_token_id")) for role in ("bos", "eos")}
    ids |= {"pad_token_id": tokenizer.pad_token_id}
    return TextPart(
        folder,
        llama_config(config, folder, vocab_size=leaving.rows, **ids, dtype=target),
        tensors,
        target,
        tokenizer,
        generation_config_of(folder, leaving),
        remarks,
    )


@dataclass(frozen=True)
class LeavingIds:
    """Which embedding rows leave, and under which ids: tokens behind what the import added move up."""

    rows: int
    new_ids: dict[int, int | None]
    """Of the ids that do not stay the same; None: the token stays behind."""
    moves: list[str]
    """The tokens that move up, and where to."""

    @property
    def index(self) -> Tensor:
        """(rows,) the number that each row has now."""
        index = torch.arange(self.rows)
        for old, new in self.new_ids.items():
            if new is not None:
                index[new] = old
        return index

    def moved(self, ids: Any) -> Any:
        """An id, or a list of ids or of lists of them, without those that stay behind."""
        if isinstance(ids, list):
            moved = [self.moved(part) for part in ids]
            if all(isinstance(part, list) for part in ids):  # a sequence is one as a whole
                return [new for old, new in zip(ids, moved, strict=True) if len(new) == len(old)]
            return [new for new in moved if new is not None]
        new = self.new_ids.get(ids, ids)
        return None if new is None or new >= self.rows else new


def leaving_ids(
    own: TokenizersBackend, tokenizer: TokenizersBackend, imported: int, rows: int, place: Path
) -> LeavingIds:
    """Of the model's `own` tokenizer and the one that leaves; `imported` of its `rows` embedding rows had the source.

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
    return LeavingIds(needed, {index: after.get(token) for token, index in changed.items()}, moves)


def staying(kind: str | None, config: ArlowConfig, leaving: LeavingIds) -> list[str]:
    """What of the model does not leave, or with other ids, as sentences."""
    remarks = []
    if kind == "arlow_vl":
        remarks.append("only the text part leaves: encoder, projector and cross-attention blocks stay behind")
    elif config.cross_attention_layers:
        remarks.append("only the text part leaves: the cross-attention blocks stay behind")
    if leaving.moves:
        remarks.append(f"the tokens that the import added stay behind, so that ids change: {named(leaving.moves)}")
    elif leaving.rows < config.vocab_size:
        remarks.append(f"the embedding rows from {leaving.rows:,} on, which the import added, stay behind")
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


def generation_config_of(folder: Path, leaving: LeavingIds) -> GenerationConfig:
    """The text model's settings, with the ids that its tokens leave with."""
    if not (folder / "generation_config.json").is_file():
        return GenerationConfig()
    with one_sentence(folder, "generation_config.json"):
        settings = settings_of_text(GenerationConfig.from_pretrained(folder))
    for name in (*TOKEN_IDS, "bad_words_ids"):
        if getattr(settings, name, None) is not None:
            ids = leaving.moved(getattr(settings, name))
            setattr(settings, name, None if ids == [] else ids)
    if settings.sequence_bias:
        biases = [[leaving.moved(ids), ids, bias] for ids, bias in settings.sequence_bias]
        settings.sequence_bias = [[new, bias] for new, ids, bias in biases if len(new) == len(ids)] or None
    return settings


def export_llama(folder: Path, out: Path, *, dtype: str | None = None) -> list[str]:
    """Writes a folder that every tool for Llama reads, and returns what to tell about it.

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
