# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Arlow, a decoder-only language model with gated cross-attention blocks, on transformers' own machinery."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.masking_utils import create_causal_mask, packed_sequence_mask_function
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import (
    ARLOW_ATTENTION,
    TextRuns,
    default_attention,
    takes_varlen,
)
from .checkpoint_checks import NamesDamagedFiles
from .configuration_arlow import ArlowConfig
from .generation_arlow import (
    CrossAttentionCacheLayer,
    CrossAttentionGenerationMixin,
    cross_attention_caches,
    image_positions,
)
from .input_checks import refuse_wrong_inputs, refuse_wrong_labels, refuse_wrong_layout
from .layers_arlow import (
    ArlowCrossAttentionBlock,
    ArlowGroupedQueryAttention,
    ArlowMLP,
    ArlowRMSNorm,
    ArlowRotaryEmbedding,
    rotary_factors,
)
from .linear import ArlowLinear, make_plain
from .loss import head_output
from .segments import (
    PADDING,
    SegmentMask,
    SegmentTable,
    build_segment_mask,
    build_segment_table,
    cached_segments,
    document_ids,
    flatten_images,
    packed_documents,
)

logger = logging.get_logger(__name__)


class ArlowFlashTransformerLayer(GradientCheckpointingLayer):
    """A decoder layer; in front of its self-attention, in the chosen layers, the gated cross-attention block."""

    def __init__(self, config: ArlowConfig, layer_idx: int):
        super().__init__()
        has_cross_block = layer_idx in config.cross_attention_layers
        self.cross_block = ArlowCrossAttentionBlock(config, layer_idx) if has_cross_block else None
        self.input_layernorm = ArlowRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ArlowGroupedQueryAttention(config, layer_idx)
        self.post_attention_layernorm = ArlowRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ArlowMLP(config)
        for projection in (self.self_attn.o_proj, self.mlp.down_proj):  # a cross block has its gates instead
            projection.writes_residual = True  # read by `_init_weights`

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        segments: SegmentTable | SegmentMask | None = None,
        cross_cache: CrossAttentionCacheLayer | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        if self.cross_block is not None and segments is not None and not segments.is_empty:
            hidden_states = self.cross_block(hidden_states, encoder_hidden_states, segments, cross_cache)
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class ArlowPreTrainedModel(NamesDamagedFiles, PreTrainedModel):
    config: ArlowConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ArlowFlashTransformerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": ArlowFlashTransformerLayer,
        "attentions": OutputRecorder(ArlowGroupedQueryAttention, index=1, layer_name="self_attn"),
    }

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Arlow's own gate, unless the user asks for another implementation by name."""
        return super().get_correct_attn_implementation(requested_attention or default_attention(), is_init_check)

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoModel") -> None:
        """As in transformers, and the configuration too: without its code no Auto class finds the model's."""
        super().register_for_auto_class(auto_class)
        cls.config_class.register_for_auto_class()

    def post_init(self) -> None:
        """Where a quantiser stands by, plain linear layers: bitsandbytes and fp8 pass over every other type."""
        super().post_init()
        if getattr(self.config, "quantization_config", None) is not None:
            make_plain(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal; matrices that write into the residual stream are scaled down by its depth (GPT-2, section 2.3)."""
        super()._init_weights(module)
        if getattr(module, "writes_residual", False):
            text_config = self.config.get_text_config()
            init.normal_(module.weight, std=text_config.initializer_range / (2 * text_config.num_hidden_layers) ** 0.5)
        elif isinstance(module, ArlowCrossAttentionBlock):
            init.zeros_(module.attn_gate)
            init.zeros_(module.mlp_gate)


class ArlowModel(ArlowPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: ArlowConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(ArlowFlashTransformerLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = ArlowRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = ArlowRotaryEmbedding(config)
        self.gradient_checkpointing = False
        if config.cross_attention_layers:
            self._keep_in_fp32_modules_strict = ["attn_gate", "mlp_gate"]
        if config.cross_attention_layers and config.cross_attention_sees == "all_previous":
            logger.warning_once(
                "cross_attention_sees 'all_previous' runs on scaled_dot_product_attention with a mask over text and "
                "encoder tokens, on any device; 'last_group' needs none and takes the varlen kernel where there is one"
            )
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | PagedAttentionCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        encoder_lengths: Tensor | None = None,
        segments: SegmentTable | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Text, and with `encoder_hidden_states` the images that its `<image>` tokens stand for.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, past + T), nonzero on text; left and right padding both work.
            position_ids: (B, T); where they restart inside a row (no cache) a new document begins.
            encoder_hidden_states: (N, P, D) one image for each `<image>`, in the order of the tokens, row by row.
            encoder_attention_mask: (N, P) nonzero on encoder tokens that count; None: all.
            encoder_lengths: (N,) int64, with flat (K, D) `encoder_hidden_states`: how many of them each image has.
            segments: which text sees which encoder tokens; None: what the `<image>` tokens of `input_ids` say.

        Raises:
            ValueError: inputs that do not go together (see `input_checks`); another number of images than `<image>`s.
            TypeError: an argument that nobody reads.
        """
        refuse_wrong_inputs(
            self.config, input_ids, inputs_embeds, encoder_hidden_states, encoder_attention_mask, kwargs
        )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        refuse_wrong_layout(self, inputs_embeds, attention_mask, position_ids, cache)
        is_first_call = cache is None
        if use_cache and is_first_call:
            cache = DynamicCache(config=self.config)
        has_positions = position_ids is not None
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, attention_mask, cache)

        caches = cross_attention_caches(cache, self.config, images_come=encoder_hidden_states is not None)
        image_lengths = None
        if encoder_hidden_states is not None:
            self._check_images_can_be_read()
            encoder_hidden_states, image_lengths = flatten_images(
                encoder_hidden_states, encoder_attention_mask, encoder_lengths
            )
        if segments is None:
            segments = self._segments(
                input_ids, inputs_embeds, position_ids, attention_mask, image_lengths, cache, caches
            )
        if self._runs_varlen(inputs_embeds, attention_mask, cache):
            kwargs["text_runs"] = TextRuns.of_documents(
                document_ids(position_ids.expand(inputs_embeds.shape[:2]), attention_mask)
            )
            causal_mask = None
        else:
            packed = None
            if is_first_call and has_positions and attention_mask is not None and attention_mask.ndim == 2:
                # Beside a mask transformers does not look for packed documents either.
                packed = packed_documents(position_ids.expand(inputs_embeds.shape[:2]), attention_mask)
            causal_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                # Beside a cache transformers does not look for packed documents; an empty one must not mix them.
                cache=None if is_first_call else cache,
                position_ids=position_ids,
                and_mask_function=None if packed is None else packed_sequence_mask_function(packed),
            )

        hidden_states = inputs_embeds
        position_embeddings = rotary_factors(*self.rotary_emb(hidden_states, position_ids=position_ids))
        cache_of_layer = dict(zip(self.config.cross_attention_layers, caches, strict=False))
        for index, layer in enumerate(self.layers):
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                segments,
                cache_of_layer.get(index),
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                cache=cache,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), cache=cache)

    @staticmethod
    def _positions(
        inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | PagedAttentionCache | None
    ) -> Tensor:
        """Counted from the first token of text, so that left padding changes nothing."""
        width = inputs_embeds.shape[1]
        if attention_mask is not None and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -width:]
        past = cache.get_seq_length() if cache is not None else 0
        return (torch.arange(width, device=inputs_embeds.device) + past)[None]

    def _runs_varlen(
        self, inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | PagedAttentionCache | None
    ) -> bool:
        """Whole texts do where the gate opens the kernel; a step over a cache has one query and would gain nothing."""
        if attention_mask is not None and attention_mask.ndim != 2:
            return False
        if isinstance(cache, Cache):
            if any(x.is_compileable for x in cache.layers[: len(self.layers)]) or cache.get_seq_length() > 0:
                return False
        elif cache is not None:  # continuous batching's pages
            return False
        if self.config._attn_implementation != ARLOW_ATTENTION:
            return False
        dropout = self.layers[0].self_attn.dropout_now
        return takes_varlen(ARLOW_ATTENTION, inputs_embeds, self.config.head_dim, dropout)

    def _check_images_can_be_read(self) -> None:
        if not self.config.use_cross_attention:
            raise ValueError(
                "this model was built with use_cross_attention False and cannot take encoder_hidden_states"
            )

    def _segments(
        self, input_ids, inputs_embeds, position_ids, attention_mask, image_lengths, cache, caches
    ) -> SegmentTable | SegmentMask | None:
        """What the text of this call sees of the images in the cache and of this call's, whose (N,) lengths come."""
        cached = caches[0] if caches and caches[0].is_initialized else None
        if image_lengths is None:
            return None if cached is None else cached_segments(cached.lengths, cached.get_seq_length())
        batch, width, _ = inputs_embeds.shape
        text_mask = None if attention_mask is None or attention_mask.ndim != 2 else attention_mask[:, -width:]
        is_image = image_positions(self.config, self.embed_tokens, input_ids, inputs_embeds)
        if input_ids is None and int(is_image.sum()) != len(image_lengths):
            raise ValueError(
                f"{len(image_lengths)} images came, which are placed by the <image> tokens of the text, and "
                f"{int(is_image.sum())} of inputs_embeds are the embedding of <image>; where embeddings were changed "
                "with inputs_embeds give segments (SegmentTable.of_pairs)"
            )
        documents = document_ids(position_ids.expand(batch, width), text_mask)
        if caches and not torch.compiler.is_compiling():
            caches[0].take_turn(is_image, documents != PADDING, int(cache.get_seq_length()))
        build = build_segment_table if self.config.cross_attention_sees == "last_group" else build_segment_mask
        segments = build(
            is_image,
            documents,
            image_lengths,
            cached_lengths=None if cached is None else cached.lengths,
            cached_width=0 if cached is None else cached.get_seq_length(),
        )
        if segments.is_empty:
            for layer in caches:
                layer.forget()
        return segments


class ArlowForCausalLM(ArlowPreTrainedModel, CrossAttentionGenerationMixin):
    """The decoder with its language-model head, tied to the embedding."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: ArlowConfig):
        super().__init__(config)
        self.model = ArlowModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = ArlowLinear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | PagedAttentionCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        encoder_lengths: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """As `ArlowModel.forward`; `labels` (B, T) are shifted inside and -100 counts for nothing.

        `skip_logits` returns the loss alone, in a fraction of the memory and time.
        """
        refuse_wrong_labels(self.config, labels, input_ids if inputs_embeds is None else inputs_embeds, logits_to_keep)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            encoder_lengths=encoder_lengths,
            **kwargs,
        )
        return head_output(self, outputs, labels, logits_to_keep, skip_logits=skip_logits, **kwargs)


class ArlowForSequenceClassification(GenericForSequenceClassification, ArlowPreTrainedModel): ...


class ArlowForTokenClassification(GenericForTokenClassification, ArlowPreTrainedModel): ...


class ArlowForQuestionAnswering(GenericForQuestionAnswering, ArlowPreTrainedModel): ...


__all__ = [
    "ArlowForCausalLM",
    "ArlowForQuestionAnswering",
    "ArlowForSequenceClassification",
    "ArlowForTokenClassification",
    "ArlowModel",
    "ArlowPreTrainedModel",
]
