"""Llama's configuration to and from Arlow's: shared fields, and refusals of values that one of them cannot express."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, MistralConfig

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig, naming_fields
from arlow_vl.models.arlow.rope_rules import REQUIRED, keys_of
from arlow_vl.models.folders import UNUSABLE

KINDS: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig}
SHARED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
    *("tie_word_embeddings", "rope_parameters", "attention_bias", "mlp_bias", "attention_dropout"),
    *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def arlow_config(values: Mapping[str, Any], place: Path, **changes: Any) -> ArlowConfig:
    """The text model that a Llama or Mistral `config.json` describes, without cross-attention blocks.

    `values` are what the file at `place` holds. Keys that transformers' own Llama does not read are ignored here too.
    `changes` are fields of ArlowConfig.

    Raises:
        CheckpointError: it is another architecture, or a field has a value that Arlow's decoder has no form for.
    """
    kind = values.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(
            f"{place}: model_type {kind!r:.100} is another architecture; import reads {' and '.join(KINDS)}"
        )
    if values.get("quantization_config") is not None:
        raise CheckpointError(
            f"{place}: quantization_config says that the weights are quantised; import them unquantised"
        )
    try:
        source = KINDS[kind].from_dict(deepcopy(dict(values)))
        source.standardize_rope_params()  # again, as the rotary embedding does: what stands beside rope_scaling counts
    except (*UNUSABLE, StrictDataclassError) as error:
        raise CheckpointError(f"{place} is no {kind} configuration: {' '.join(str(error).split()):.400}") from error
    window = getattr(source, "sliding_window", None)
    if window is not None and window < source.max_position_embeddings:
        raise CheckpointError(
            f"{place}: sliding_window {window!r} hides text that Arlow's attention sees; only checkpoints without a "
            "window (null) can be imported"
        )
    fields = {name: getattr(source, name) for name in SHARED if hasattr(source, name)}
    fields["attention_dropout"] = fields.get("attention_dropout") or 0.0
    rope = dict(fields.get("rope_parameters") or {})
    if rope.get("rope_type") in REQUIRED:  # nothing reads "finetuned" of YaRN's first checkpoints
        fields["rope_parameters"] = {key: rope[key] for key in keys_of(rope["rope_type"]) if rope.get(key) is not None}
    fields |= {"use_cross_attention": False, **changes}
    try:
        with naming_fields(ArlowConfig):
            config = ArlowConfig(**fields)
    except ValueError as error:
        reason = str(error).removeprefix("ArlowConfig: ")
        raise CheckpointError(f"{place}: Arlow's decoder cannot be built from it: {reason}") from error
    interval, depth = config.cross_attention_interval or 1, config.num_hidden_layers
    if interval > depth:
        raise ValueError(
            f"a cross-attention interval of {interval} fits no block into {depth} layers; give a smaller one"
        )
    return config


def llama_config(config: ArlowConfig, place: Path, **changes: Any) -> LlamaConfig:
    """Llama's configuration of an Arlow decoder's text part. Raises CheckpointError for a decoder of another form."""
    if not config.mlp_gated:
        raise CheckpointError(f"{place}: mlp_gated False is a decoder that Llama has no form for; nothing was exported")
    fields = {name: getattr(config, name) for name in SHARED} | changes
    fields["rope_parameters"] = dict(config.rope_parameters or {})
    return LlamaConfig(**fields, architectures=["LlamaForCausalLM"])
