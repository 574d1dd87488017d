"""The text part as one GGUF file of the architecture llama, for llama.cpp and what is built on it."""

import contextlib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arlow_vl.errors import CheckpointError, ResourceError
from arlow_vl.locks import being_written, one_writer
from arlow_vl.models.convert.exporting import TextPart, read_text_part, summary
from arlow_vl.models.convert.gguf_files import INNER, NO_EXTRA, OUTER, to_gguf_order
from arlow_vl.models.convert.gguf_tokens import Vocabulary, vocabulary_of
from arlow_vl.printing import visible
from vision.whole_files import put_in_place

GGUF_OF_INNER = {name: key for key, name in INNER.items()}
GGUF_OF_OUTER = {name: key for key, name in OUTER.items()}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
GENERATION_TAG = re.compile(r"\{%-?\s*(?:generation|endgeneration)\s*-?%\}")  # transformers' own, for masks in training
NAMES_IN_GGUF = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
END_ROLES = ("eot", "eom")
"""GGUF's fields for tokens beside eos that end a text: of a turn, of a message."""
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


def export_gguf(folder: Path, out: Path, *, dtype: str | None = None) -> list[str]:
    """Writes the file, and returns sentences about it. Vectors (norms, biases) are float32 in any case.

    Raises:
        CheckpointError: as `read_text_part`, or the model has a tokenizer, an activation or rotary parameters that
            llama.cpp's llama has not.
        ResourceError: `out` cannot be written.
    """
    try:
        import gguf  # noqa: F401  before anything that takes time
    except ImportError as error:
        raise ValueError(f"a GGUF file {NO_EXTRA}") from error
    part = read_text_part(folder, dtype)
    refuse_other_kinds(part)
    vocabulary = vocabulary_of(part.tokenizer, part.config.vocab_size, folder)
    partial = out.with_name(f".{out.name}.partial")
    try:
        with one_writer(partial, is_folder=False, refusal=being_written(out)):
            write_gguf(partial, out, part, vocabulary)
    except OSError as error:
        raise ResourceError(f"cannot write {out}: {error}; nothing was left there, so make room and repeat") from error
    return [
        f"{out}: GGUF, {summary(part)}",
        *part.remarks,
        *vocabulary.remarks,
        *sentences_about_ends(vocabulary, part),
    ]


def write_gguf(partial: Path, out: Path, part: TextPart, vocabulary: Vocabulary) -> None:
    """Writes `partial` and renames it. Raises ValueError where `out` exists: another process may have written it."""
    import gguf

    kind = NAMES_IN_GGUF[part.dtype]
    try:
        if out.exists():
            raise ValueError(f"{out} exists already; name a new file")
        writer = gguf.GGUFWriter(partial, "llama")
        writer.add_name(visible(part.folder.resolve().name))
        writer.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[kind]))
        add_architecture(writer, part)
        add_vocabulary(writer, vocabulary, part)
        for name, tensor in part.tensors.items():
            add_tensor(writer, gguf_name(name), in_gguf_order(name, tensor, part), kind if tensor.ndim > 1 else "F32")
        if part.rope["rope_type"] == "llama3":
            add_tensor(writer, "rope_freqs.weight", llama3_factors(part), "F32")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        put_in_place(partial, out)
    finally:
        with contextlib.suppress(OSError):  # renamed, or never written
            partial.unlink()


def refuse_other_kinds(part: TextPart) -> None:
    """Raises CheckpointError for what llama.cpp's llama does not compute."""
    config = part.config
    if config.hidden_act != "silu":
        raise CheckpointError(
            f"{part.folder}: hidden_act {config.hidden_act!r} cannot be said in GGUF, only silu; export it as llama"
        )
    kind = part.rope["rope_type"]
    if kind not in ("default", "linear", "llama3"):
        raise CheckpointError(
            f"{part.folder}: rope_type {kind!r} is not written into GGUF, only default, linear and llama3; export it "
            "as llama"
        )


def add_architecture(writer: Any, part: TextPart) -> None:
    config = part.config
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(part.rope["rope_theta"])
    if part.rope["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(part.rope["factor"])


def add_vocabulary(writer: Any, vocabulary: Vocabulary, part: TextPart) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    for name, value in vocabulary.flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    for role, index in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", index)
    for role, index in zip(END_ROLES, other_ends(vocabulary, part), strict=False):
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", index)
    templates = part.tokenizer.chat_template or {}
    if isinstance(templates, str):
        templates = {"default": templates}
    plain = [{"name": name, "template": GENERATION_TAG.sub("", text)} for name, text in templates.items()]
    if plain:
        writer.add_chat_template(plain)


def other_ends(vocabulary: Vocabulary, part: TextPart) -> list[int]:
    """Tokens beside eos that end a text."""
    ends = part.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return [end for end in dict.fromkeys(ends) if end not in (None, vocabulary.ids.get("eos"))]


def sentences_about_ends(vocabulary: Vocabulary, part: TextPart) -> list[str]:
    """Sentences on ends of text that GGUF has no field for."""
    lost = [visible(vocabulary.tokens[index]) for index in other_ends(vocabulary, part)[len(END_ROLES) :]]
    return [f"llama.cpp will not end a text at {', '.join(lost)}: GGUF has fields for three ends"] if lost else []


def gguf_name(name: str) -> str:
    match = LAYER.fullmatch(name)
    if match:
        return f"blk.{match[1]}.{GGUF_OF_INNER[match[2]]}.{match[3]}"
    stem, _, kind = name.rpartition(".")
    return f"{GGUF_OF_OUTER[stem]}.{kind}"


def in_gguf_order(name: str, tensor: Tensor, part: TextPart) -> Tensor:
    for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if f".{projection}." in name:
            return to_gguf_order(tensor, getattr(part.config, heads))
    return tensor


def add_tensor(writer: Any, name: str, tensor: Tensor, kind: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if kind == "BF16":  # numpy has no bfloat16; through float32 nothing is lost
        writer.add_tensor(
            name, quantize(tensor.float().numpy(), GGMLQuantizationType.BF16), raw_dtype=GGMLQuantizationType.BF16
        )
    else:
        writer.add_tensor(name, tensor.to(torch.float16 if kind == "F16" else torch.float32).numpy())


def llama3_factors(part: TextPart) -> Tensor:
    """(head_dim / 2,) divisors of the frequencies in llama.cpp: Llama 3.1's rule, long waves by `factor`."""
    rope, config = part.rope, part.config
    width = int(config.head_dim or 0)
    frequencies = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    waves = 2 * math.pi / frequencies
    original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = ((original / waves - low) / (high - low)).clamp(0, 1)  # 0: a long wave, 1: a short one
    return (1 / ((1 - smooth) / factor + smooth)).float()
