# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Arlow, a decoder-only language model with gated cross-attention blocks, on transformers' own machinery."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.continuous_batching import PagedAttentionCache
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

from .attention import cast_to, default_attention
from .attention_inputs_arlow import count_positions, find_documents, find_segments, self_attention_inputs
from .cache_arlow import CrossAttentionCacheLayer, cross_attention_caches
from .checkpoint_checks import NamesDamagedFiles
from .configuration_arlow import ArlowConfig
from .encoder_checks import Images
from .generation_arlow import CrossAttentionGenerationMixin
from .input_checks import (
    Text,
    refuse_misspelt,
    refuse_wrong_call,
    refuse_wrong_labels,
    refuse_wrong_layout,
)
from .layers_arlow import (
    ArlowCrossAttentionBlock,
    ArlowGroupedQueryAttention,
    ArlowMLP,
    ArlowRMSNorm,
    ArlowRotaryEmbedding,
    rotary_factors,
    with_zero_gradients,
)
from .layout import BatchLayout
from .linear import ArlowLinear, align_weights, make_plain
from .loss import head_output
from .segments import SegmentMask, SegmentTable, flatten_images

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
        elif self.cross_block is not None and torch.is_grad_enabled() and self._may_be_trained(encoder_hidden_states):
            hidden_states = with_zero_gradients(hidden_states, (encoder_hidden_states, *self.cross_block.parameters()))
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    def _may_be_trained(self, encoder_hidden_states: Tensor | None) -> bool:
        return self.cross_block.training or encoder_hidden_states is not None


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
        """The default of `default_attention`, unless the user asks for an implementation by name."""
        return super().get_correct_attn_implementation(requested_attention or default_attention(), is_init_check)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Loads as transformers does, and aligns the weights, so that products are rounded alike (`align_weights`).

        Where the file has a head that differs from the embedding, `tie_word_embeddings` becomes False.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # the tuple's second entry is the report
        align_weights(model)
        if model._tied_weights_keys and not model.all_tied_weights_keys:  # transformers warns, and ties nothing
            model.config.tie_word_embeddings = False
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves as transformers does; a head that is the embedding is saved as such, whatever the configuration says.

        transformers writes shared weights once, and would draw a head anew for a configuration that says apart.
        """
        head = self.get_output_embeddings()
        if head is not None and head.weight is self.get_input_embeddings().weight:
            self.config.tie_word_embeddings = True
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoModel") -> None:
        """Registers the model as transformers does, and its configuration, without which no Auto class finds it."""
        super().register_for_auto_class(auto_class)
        cls.config_class.register_for_auto_class()

    def post_init(self) -> None:
        """Makes linear layers plain where the model will be quantised: bitsandbytes and fp8 skip other types."""
        super().post_init()
        if getattr(self.config, "quantization_config", None) is not None:
            make_plain(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws normal weights, scaled by depth where they write into the residual stream (GPT-2, section 2.3)."""
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
        image_index: Tensor | None = None,
        segments: SegmentTable | SegmentMask | None = None,
        layout: BatchLayout | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Runs the decoder on text and, with `encoder_hidden_states`, on the images that its `<image>`s stand for.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, past + T), nonzero on text; left and right padding both work.
            position_ids: (B, T); where they restart inside a row a new document begins.
            encoder_hidden_states: (N, P, D) one image for each `<image>`, in the order of the tokens, row by row; of
                several that are seen together each gets its number (`image_numbers`).
            encoder_attention_mask: (N, P) nonzero on encoder tokens that count; None: all.
            encoder_lengths: (N,) int64, with flat (K, D) `encoder_hidden_states`: how many of them each image has.
            image_index: (N,) int64, where texts share images: which of the M images each `<image>` stands for.
            segments: which text sees which encoder tokens; None: what the `<image>` tokens of `input_ids` say.
            layout: documents and segments of whole rows, made beforehand; then nothing here waits for the device.

        Raises:
            ValueError: inputs that do not go together (see `input_checks`).
            TypeError: an argument whose name is nearly one of these.
        """
        refuse_misspelt(self.forward, kwargs)
        text = Text(input_ids, inputs_embeds, attention_mask, position_ids)
        images = Images(encoder_hidden_states, encoder_attention_mask, encoder_lengths, image_index)
        refuse_wrong_call(self, text, images, cache)

        # Embed.
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        cache = self._cache_to_fill(cache, use_cache)

        # Positions, and the documents that they tell apart.
        if position_ids is None:
            position_ids = count_positions(inputs_embeds, attention_mask, cache)
        if layout is not None:
            refuse_wrong_layout(layout, text, images, cache, segments)
        documents = find_documents(text, position_ids, images, cache) if layout is None else layout.documents

        # Images that text sees, then text that text sees.
        cross_caches = cross_attention_caches(cache, self.config, images_come=images.come)
        image_lengths = None
        if encoder_hidden_states is not None:
            encoder_hidden_states, image_lengths = flatten_images(cast_to(images[0], inputs_embeds.dtype), *images[1:3])
        if layout is None:
            segments = find_segments(self, text, documents, image_lengths, image_index, segments, cross_caches)
        else:
            segments = layout.segments
        if encoder_hidden_states is not None and segments is not None:
            encoder_hidden_states = segments.entries.numbered(encoder_hidden_states)
        attention_inputs = self_attention_inputs(self, inputs_embeds, text, documents, cache, layout)

        # Layers and norm.
        hidden_states = inputs_embeds
        position_embeddings = rotary_factors(*self.rotary_emb(hidden_states, position_ids=position_ids))
        cross_cache_of_layer = dict(zip(self.config.cross_attention_layers, cross_caches, strict=False))
        for index, layer in zip(range(self.config.num_hidden_layers), self.layers, strict=False):  # drafts exit early
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                segments,
                cross_cache_of_layer.get(index),
                position_embeddings=position_embeddings,
                cache=cache,
                use_cache=use_cache,
                **({"position_ids": position_ids} | attention_inputs | kwargs),
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), cache=cache)

    def _cache_to_fill(self, cache: Cache | PagedAttentionCache | None, use_cache: bool | None):
        if self.recomputes_layers:
            if cache is not None:
                logger.warning_once("gradient checkpointing computes layers twice, so that nothing goes into the cache")
            return None
        return DynamicCache(config=self.config) if use_cache and cache is None else cache

    @property
    def recomputes_layers(self) -> bool:
        """True where gradient checkpointing computes every layer a second time, for the backward pass."""
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()


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
        image_index: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Runs `ArlowModel.forward` and the head; `labels` (B, T) are shifted inside, and -100 is ignored.

        `skip_logits` returns the loss alone, in a fraction of the memory and time.
        """
        refuse_misspelt(self.forward, kwargs)
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
            image_index=image_index,
            **kwargs,
        )
        return head_output(self, outputs, labels, logits_to_keep, skip_logits=skip_logits, **kwargs)


# The heads of transformers, which would take the decoder from AutoModel: it knows none whose code lies in a folder.


class ArlowForSequenceClassification(GenericForSequenceClassification, ArlowPreTrainedModel):
    def __init__(self, config: ArlowConfig):
        ArlowPreTrainedModel.__init__(self, config)
        self.model = ArlowModel(config)
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class ArlowForTokenClassification(GenericForTokenClassification, ArlowPreTrainedModel):
    def __init__(self, config: ArlowConfig):
        ArlowPreTrainedModel.__init__(self, config)
        self.model = ArlowModel(config)
        self.num_labels = config.num_labels
        self.dropout = nn.Dropout(0.1)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class ArlowForQuestionAnswering(GenericForQuestionAnswering, ArlowPreTrainedModel):
    def __init__(self, config: ArlowConfig):
        ArlowPreTrainedModel.__init__(self, config)
        self.model = ArlowModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


__all__ = [
    "ArlowForCausalLM",
    "ArlowForQuestionAnswering",
    "ArlowForSequenceClassification",
    "ArlowForTokenClassification",
    "ArlowModel",
    "ArlowPreTrainedModel",
]
