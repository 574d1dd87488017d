# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Architecture of Arlow, the text decoder."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import RopeParameters
from transformers.utils import logging

from .errors import CheckpointError
from .rope_rules import refuse_unusable_rope
from .spelling import did_you_mean

logger = logging.get_logger(__name__)

# What transformers itself passes or stores beside a config's own fields.
LIBRARY_KEYS = frozenset(
    """
    attn_implementation auto_map cross_attention custom_pipelines experts_implementation model_type name_or_path
    num_labels output_attentions partial_rotary_factor per_layer_config quantization_config rope_scaling rope_theta
    torch_dtype _attn_implementation_internal _commit_hash _experts_implementation_internal _name_or_path
    """.split()
)
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "cross_attention_interval",
)


def unknown_keys(config: PreTrainedConfig, keys: Iterable[str]) -> list[str]:
    """The keys that are neither fields of the configuration nor transformers' own."""
    known = {field.name for field in fields(config)} | set(config.attribute_map) | LIBRARY_KEYS
    known.update(GenerationConfig._get_default_generation_params())
    return [key for key in keys if key not in known]


def refuse_unknown_keys(config: PreTrainedConfig, keys: Iterable[str]) -> None:
    """Refuses keywords that are no field, which transformers would keep as attributes that nothing reads.

    Raises:
        ValueError: naming the key and the closest field.
    """
    own = {field.name for field in fields(config)} | set(config.attribute_map)
    for key in unknown_keys(config, keys):
        listed = own - set(GenerationConfig._get_default_generation_params())
        raise ValueError(f"{type(config).__name__} has no field {key!r}; {did_you_mean(key, sorted(listed))}")


def without_unknown_keys(config: PreTrainedConfig, saved: dict[str, Any]) -> dict[str, Any]:
    """The saved values without those that `from_dict` would refuse: attributes set later, which are logged."""
    for key in unknown_keys(config, saved):
        logger.warning_once(f"{key!r} is no field of {type(config).__name__} and is not saved with it")
        del saved[key]
    return saved


@contextmanager
def naming_fields(config_class: type) -> Iterator[None]:
    """Encloses the building of a configuration from a file, which may hold any value.

    Raises:
        CheckpointError: one sentence with the field, whatever transformers raised for the value.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        reason = " ".join(str(cause).split())
        raise CheckpointError(f"{config_class.__name__}: {reason:.400}") from error


@strict
class ArlowConfig(PreTrainedConfig):
    """The text decoder. The defaults are the published sizes, but for these deliberate deviations:

    - `num_key_value_heads` 4, not 12: a third of the cache, as in the author's later version.
    - `mlp_gated` True (SwiGLU): better at equal FLOPs; False is the published MLP of two matrices.
    - `attention_dropout` 0.0: one epoch of pretraining does not overfit.
    - `attention_bias` False: as every later decoder of this family; True is the published form.
    - `cross_attention_interval` 4 (or the depth of a shallower model): a cross-attention block before every fourth
      layer, as Llama 3 has it (7 blocks of 0.08 B parameters, each with an MLP of its own); 1 puts one in front of
      every layer as published, 1.64 B more.
    - special tokens: pad (3) differs from eos (2), so that learning to stop is never masked away.
    - `use_cross_attention` alone switches the blocks on; its other published name, `cross_attention`, is still read.

    Every rotary scaling of transformers works (`rope_parameters`); the older `rope_theta` and `rope_scaling` are read.
    """

    model_type = "arlow"
    # Outputs that Trainer would otherwise gather from every evaluation batch, beside the logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values", "hidden_states", "attentions"]
    default_theta = 1e5
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
        "layers.*.cross_block.attn.q_proj": "colwise",
        "layers.*.cross_block.attn.k_proj": "colwise",
        "layers.*.cross_block.attn.v_proj": "colwise",
        "layers.*.cross_block.attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.cross_block.attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.cross_block.attn.o_proj": "rowwise",
        "layers.*.cross_block.mlp.gate_proj": "colwise",
        "layers.*.cross_block.mlp.up_proj": "colwise",
        "layers.*.cross_block.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan: ClassVar[dict[str, tuple]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 131072
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    hidden_act: str = "silu"
    mlp_gated: bool = True
    mlp_bias: bool = False
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 3
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    image_token_id: int = 7
    tie_word_embeddings: bool = True
    rope_parameters: RopeParameters | dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float = 0.0
    use_cross_attention: bool = True
    cross_attention_interval: int | None = None
    cross_attention_sees: Literal["last_group", "all_previous"] = "last_group"
    """Images that a token sees of those before it in its document; "all_previous" runs on SDPA, with a mask."""

    def __post_init__(self, **kwargs):
        refuse_unknown_keys(self, kwargs)
        self.use_cross_attention = kwargs.pop("cross_attention", self.use_cross_attention)  # the published name
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.cross_attention_interval is None:
            self.cross_attention_interval = min(4, self.num_hidden_layers)
        absent = [] if self.use_cross_attention else ["cross_block"]
        absent += [] if self.mlp_gated else ["gate_proj"]
        self.base_model_tp_plan = {  # pyrefly: ignore[read-only]  # transformers warns of a rule without a module
            name: style for name, style in self.base_model_tp_plan.items() if not set(absent) & set(name.split("."))
        }
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        return without_unknown_keys(self, super().to_dict())

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Builds the configuration as transformers does. Raises CheckpointError naming an unusable field."""
        with naming_fields(cls):
            return super().from_dict(config_dict, **kwargs)

    @property
    def cross_attention_layers(self) -> list[int]:
        """Indices of the layers that a cross-attention block stands in front of."""
        if not self.use_cross_attention:
            return []
        return list(range(self.cross_attention_interval - 1, self.num_hidden_layers, self.cross_attention_interval))

    def validate_architecture(self) -> None:
        """Part of `@strict`: refuses combinations that no model can be built from."""
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("initializer_range", "rms_norm_eps"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"attention_dropout must be at least 0 and below 1, got {self.attention_dropout}")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {self.hidden_act!r} is unknown; {did_you_mean(self.hidden_act, ACT2FN)}")
        rules = [
            (
                self.hidden_size % self.num_attention_heads == 0,
                f"hidden_size ({self.hidden_size}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})",
            ),
            (
                self.num_attention_heads % self.num_key_value_heads == 0,
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})",
            ),
            (
                self.head_dim % 2 == 0,
                f"head_dim ({self.head_dim}, by default hidden_size / num_attention_heads) must be even: "
                "rotary embedding turns pairs of channels",
            ),
            (
                not self.use_cross_attention or self.cross_attention_interval <= self.num_hidden_layers,
                f"cross_attention_interval ({self.cross_attention_interval}) must not exceed num_hidden_layers "
                f"({self.num_hidden_layers}), or no layer would have a cross-attention block; "
                "set use_cross_attention to False for a text model without any",
            ),
        ]
        for holds, sentence in rules:
            if not holds:
                raise ValueError(sentence)

    def validate_token_ids(self) -> None:
        """Part of `@strict`: every special token is a row of the embedding, and `<image>` is one of its own."""
        eos = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        specials = {"pad_token_id": [self.pad_token_id], "bos_token_id": [self.bos_token_id], "eos_token_id": eos}
        if self.use_cross_attention:
            for name, ids in specials.items():
                if self.image_token_id in ids:
                    raise ValueError(
                        f"image_token_id ({self.image_token_id}) must differ from {name}, "
                        "or every such token would ask for an image"
                    )
            specials["image_token_id"] = [self.image_token_id]
        for name, ids in specials.items():
            for token_id in ids:
                if token_id is not None and not 0 <= token_id < self.vocab_size:
                    raise ValueError(
                        f"{name} ({token_id}) must lie below vocab_size ({self.vocab_size}) and not below 0"
                    )
        if self.pad_token_id is not None and self.pad_token_id in eos:
            logger.warning_once(
                f"pad_token_id and eos_token_id are both {self.pad_token_id}: a collator that masks padding out of "
                "the labels also masks every end of text, and the model never learns to stop"
            )

    def validate_rope(self) -> None:
        """Part of `@strict`: refuses rotary parameters that cannot work, most of which transformers only logs."""
        refuse_unusable_rope(self.rope_parameters, self.head_dim, self.max_position_embeddings)
        super().validate_rope()


__all__ = ["ArlowConfig"]
