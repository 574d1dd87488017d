"""A GGUF file of the architecture llama as a source: metadata to Llama's configuration, tensors to Llama's names.

llama.cpp turns neighbouring channels of query and key heads, Llama's code those half a head apart; so the rows of
`attn_q` and `attn_k` lie in another order:

    Llama      0 1 2 3 | 4 5 6 7        (a head of 8: channel i turns with i + 4)
    llama.cpp  0 4 1 5 2 6 3 7          (channel 2i turns with 2i + 1)
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, TokenizersBackend

from arlow_vl.errors import CheckpointError
from arlow_vl.models.convert.gguf_tokens import tokenizer_of
from arlow_vl.models.convert.sources import Source
from arlow_vl.models.convert.tensors import Tensors
from arlow_vl.models.folder_hashes import as_dtype
from arlow_vl.models.folders import UNUSABLE, is_finite, named, one_sentence

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
READ = {
    *SIZES.values(),
    *("attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length"),
    *("attention.sliding_window", "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor"),
    "rope.scale_linear",  # the factor's older name
}
WITHOUT_MEANING = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"}
NO_EXTRA = "needs gguf, which the extra `convert` brings: pip install 'arlow-vl[convert]'"


def open_gguf(path: Path) -> Source:
    """Opens a file. Raises CheckpointError for one cut short, of another architecture or unreadable quantisation."""
    reader, metadata = read_header(path)
    names = {tensor.name: llama_name(tensor.name) for tensor in reader.tensors}
    with one_sentence(path, "its metadata"):
        config = llama_values(metadata, set(names), path)
    refuse_quantisations(reader.tensors, path)
    shapes = {names[tensor.name]: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    rows = shapes.get("model.embed_tokens.weight")
    if rows is None:
        raise CheckpointError(f"{path} holds no token_embd.weight, so it is no whole model; it may be a part of one")
    config["vocab_size"] = rows[0]

    def read_tokenizer() -> TokenizersBackend:
        with one_sentence(path, "its tokenizer"):
            return tokenizer_of(metadata, path)

    def read_tensors() -> Tensors:
        return read_values(reader.tensors, names, config, path)

    return Source(path, config, shapes, generation_config_of(metadata, config, path), read_tokenizer, read_tensors)


def read_header(path: Path) -> tuple[Any, dict[str, Any]]:
    """gguf's reader, whose tensors are not read yet, and the metadata by its keys."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f"a GGUF file {NO_EXTRA}") from error
    try:
        reader = GGUFReader(path)
        return reader, {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    except UNUSABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as GGUF, it is cut short or something else: "
            f"{reason:.200}; copy or download it again"
        ) from error


def llama_name(name: str) -> str:
    """Llama's name of a tensor; one that llama.cpp's llama has and Llama has not keeps its own."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    match = BLOCK.fullmatch(name)
    if match and match[2] in INNER:
        return f"model.layers.{int(match[1])}.{INNER[match[2]]}.{match[3]}"
    return name


def llama_values(metadata: dict[str, Any], tensors: set[str], path: Path) -> dict[str, Any]:
    """The metadata as Llama's config.json would have it, without the vocabulary's size.

    Raises:
        CheckpointError: another architecture, or a value that Llama's configuration has no field for.
    """
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise CheckpointError(f"{path}: general.architecture {kind!r:.60} is another architecture; import reads llama")
    values = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    for key, value in values.items():
        if key not in READ | WITHOUT_MEANING and value:
            raise CheckpointError(f"{path}: llama.{key} {value!r:.60} is nothing that Arlow's decoder has")
    for key in SIZES.values():
        if type(values.get(key)) is not int:
            raise CheckpointError(f"{path}: llama.{key} must be one number for all layers, got {values.get(key)!r:.60}")
    heads = values["attention.head_count"]
    head_dim = values.get("attention.key_length") or values["embedding_length"] // max(heads, 1)
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.get(key, head_dim) != head_dim:
            raise CheckpointError(f"{path}: llama.{key} {values[key]!r:.60} differs from the heads' width, {head_dim}")
    if "rope_freqs.weight" in tensors:
        raise CheckpointError(
            f"{path}: rope_freqs.weight holds rotary factors without the rule that made them (Llama 3.1 and later); "
            "import the model's safetensors folder"
        )
    config = {name: values[key] for name, key in SIZES.items()}
    config |= {
        "model_type": "mistral" if values.get("attention.sliding_window") else "llama",
        "sliding_window": values.get("attention.sliding_window") or None,
        "num_key_value_heads": values.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": shortest(values.get("attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_parameters": rope_parameters(values, path),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{role}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return config


def generation_config_of(metadata: dict[str, Any], config: dict[str, Any], path: Path) -> GenerationConfig:
    """Settings with every token that ends an answer: of the text (eos), of a turn (eot) and of a message (eom)."""
    ends = [config["eos_token_id"]]
    for role in ("eot", "eom"):
        index = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if index is not None and not (type(index) is int and 0 <= index < config["vocab_size"]):
            raise CheckpointError(f"{path}: tokenizer.ggml.{role}_token_id {index!r:.60} is no token of the vocabulary")
        ends.append(index)
    ends = [end for end in dict.fromkeys(ends) if end is not None]
    settings = {name: config[name] for name in ("bos_token_id", "pad_token_id")}
    return GenerationConfig(eos_token_id=ends if len(ends) > 1 else config["eos_token_id"], **settings)


def rope_parameters(values: dict[str, Any], path: Path) -> dict[str, Any]:
    factor = values.get("rope.scaling.factor") or values.get("rope.scale_linear") or 1.0
    kind = values.get("rope.scaling.type", "none" if factor == 1 else "linear")  # as llama.cpp takes a bare factor
    parameters = {"rope_type": "default", "rope_theta": shortest(values.get("rope.freq_base", 10_000.0))}
    if kind == "linear":
        return parameters | {"rope_type": "linear", "factor": shortest(factor)}
    if kind != "none":
        raise CheckpointError(
            f"{path}: llama.rope.scaling.type {kind!r:.60} cannot be read out of GGUF, only none and linear; import "
            "the model's safetensors folder"
        )
    return parameters


def shortest(value: Any) -> Any:
    """The shortest number whose float32 is the one in the file: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def refuse_quantisations(tensors: Any, path: Path) -> None:
    """Raises CheckpointError naming the kinds that gguf cannot turn back into numbers."""
    from gguf.quants import dequantize

    unread = {}
    for tensor in {tensor.tensor_type: tensor for tensor in tensors}.values():
        try:
            dequantize(tensor.data[:1], tensor.tensor_type)
        except (NotImplementedError, *UNUSABLE):
            unread[tensor.tensor_type.name] = tensor.name
    if unread:
        first = "; ".join(f"{kind}, as in {name}" for kind, name in unread.items())
        raise CheckpointError(f"{path}: quantisation that cannot be read: {first}; take another file of the model")


def read_values(tensors: Any, names: dict[str, str], config: dict[str, Any], path: Path) -> Tensors:
    """Tensors in float32, or in the half precision of all matrices where the rest fits into it unchanged."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    halves = {GGMLQuantizationType.F16: "float16", GGMLQuantizationType.BF16: "bfloat16"}
    kinds = {tensor.tensor_type for tensor in tensors if len(tensor.shape) > 1}
    half = halves.get(kinds.pop()) if len(kinds) == 1 else None
    values, bad = {}, []
    for tensor in tensors:
        name = names[tensor.name]
        array = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        value = torch.from_numpy(array).reshape([int(size) for size in reversed(tensor.shape)])
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if f".{part}." in name:
                value = to_llama_order(value, config[heads])
        values[name] = as_dtype(value, half)
        bad += [] if is_finite(value) else [tensor.name]
    if bad:
        raise CheckpointError(
            f"{path}: values that are not finite (NaN or infinite) in {named(bad)}; take another file"
        )
    return values


def to_llama_order(rows: Tensor, heads: int) -> Tensor:
    """(heads * Dh, ...) rows of a query or key projection, from llama.cpp's order to Llama's."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def to_gguf_order(rows: Tensor, heads: int) -> Tensor:
    """(heads * Dh, ...) rows of a query or key projection, from Llama's order to llama.cpp's."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()
