# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Arlow, a decoder-only language model with gated cross-attention blocks, on transformers' own machinery."""

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
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
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import (
    ARLOW_ATTENTION,
    TextRuns,
    arlow_attention_forward,
    default_attention,
    eager_attention_forward,
    takes_varlen,
    varlen_attention,
)
from .checkpoint_checks import NamesDamagedFiles
from .configuration_arlow import ArlowConfig
from .generation_arlow import (
    CrossAttentionCacheLayer,
    PictureGenerationMixin,
    cross_attention_caches,
    image_positions,
)
from .input_checks import refuse_wrong_inputs, refuse_wrong_labels, refuse_wrong_layout
from .layers_arlow import ArlowMLP, ArlowRMSNorm, ArlowRotaryEmbedding, apply_rotary, rotary_factors
from .linear import ArlowLinear, make_plain
from .loss import head_output
from .segments import (
    PADDING,
    Runs,
    SegmentMask,
    SegmentTable,
    build_segment_mask,
    build_segment_table,
    cached_segments,
    document_ids,
    flatten_pictures,
    packed_documents,
)

logger = logging.get_logger(__name__)


class ArlowGroupedQueryAttention(nn.Module):
    """Self-attention whose key and value heads are each shared by a group of query heads (arXiv:2305.13245)."""

    def __init__(self, config: ArlowConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        query_size, key_size = (n * self.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = ArlowLinear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = ArlowLinear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = ArlowLinear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = ArlowLinear(query_size, config.hidden_size, bias=config.attention_bias)

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim))

    @property
    def dropout_now(self) -> float:
        return self.attention_dropout if self.training else 0.0

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | BlockMask | None = None,
        cache: Cache | PagedAttentionCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        projections = self.q_proj, self.k_proj, self.v_proj
        query, key, value = (self._heads(project(hidden_states)).transpose(1, 2) for project in projections)
        query, key = (apply_rotary(states, *position_embeddings) for states in (query, key))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)  # a paged one adds to them
        implementation = self.config._attn_implementation
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            # transformers' own sdpa would repeat the heads of masked keys and values in memory
            ARLOW_ATTENTION if implementation == "sdpa" else implementation,
            eager_attention_forward,
        )
        attended, weights = attention_interface(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=self.dropout_now, **kwargs
        )
        return self.o_proj(attended.flatten(-2)), weights


class ArlowGroupedCrossAttention(ArlowGroupedQueryAttention):
    """Text attends to encoder tokens: grouped heads, QK-norm a head, no rotary embedding, no mask (see `segments`)."""

    def __init__(self, config: ArlowConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.is_causal = False
        self.q_norm = ArlowRMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = ArlowRMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        segments: SegmentTable | SegmentMask,
        cache: CrossAttentionCacheLayer | None = None,
    ) -> Tensor:
        """Text that sees a picture, (Q, D) with a table, (B, T, D) with a mask; flat (K, D) tokens of new pictures.

        The result has the shape of the text.
        """
        query = self.q_norm(self._heads(self.q_proj(hidden_states)))
        pool = self._pool(encoder_hidden_states, cache)
        attend = self._over_mask if isinstance(segments, SegmentMask) else self._over_runs
        attended = attend(query, *pool, segments, None if encoder_hidden_states is None else cache)
        return self.o_proj(attended.flatten(-2))

    def _pool(self, encoder_hidden_states: Tensor | None, cache) -> tuple[Tensor, Tensor]:
        """(K, Hkv, Dh) keys and values: what the cache holds, then this call's pictures, which alone are projected."""
        pools = []
        if cache is not None and cache.is_initialized:
            pools.append((cache.keys.flatten(0, 1), cache.values.flatten(0, 1)))
        if encoder_hidden_states is not None:
            key = self.k_norm(self._heads(self.k_proj(encoder_hidden_states)))
            pools.append((key, self._heads(self.v_proj(encoder_hidden_states))))
        key, value = (torch.cat(pool) if len(pool) > 1 else pool[0] for pool in zip(*pools, strict=True))
        return key, value

    def _over_runs(self, query, key, value, segments: SegmentTable, cache) -> Tensor:
        """(Q, H, Dh) -> the same. Fills `cache` with the run that each row will see later."""
        if segments.key_index is not None:
            key, value = key[segments.key_index], value[segments.key_index]
        queries, keys = segments.query_runs, segments.key_runs
        if cache is not None:
            lengths = keys.lengths[segments.keeps] * (segments.keeps >= 0)
            width = max(int(lengths.max()), 1)  # not what a group of an earlier document may have needed
            cache.update(*(keys.pad(x)[segments.keeps, :width] for x in (key, value)), lengths)
        if takes_varlen(self.config._attn_implementation, query, self.head_dim, self.dropout_now):
            return varlen_attention(
                query, key, value, query_runs=queries, key_runs=keys, scaling=self.scaling, is_causal=False
            )
        if len(segments.groups) == 1:
            return self._over_padded_runs(query, key, value, queries, keys)
        parts, places = [], []
        for numbers in segments.groups:
            (q_index, q_runs), (k_index, k_runs) = queries.subset(numbers), keys.subset(numbers)
            parts.append(self._over_padded_runs(query[q_index], key[k_index], value[k_index], q_runs, k_runs))
            places.append(q_index)
        return torch.cat(parts)[torch.cat(places).argsort()]

    def _over_padded_runs(self, query, key, value, queries: Runs, keys: Runs) -> Tensor:
        mask = None if keys.padding_mask is None else keys.padding_mask[:, None, None]
        return queries.unpad(self._attend(queries.pad(query), keys.pad(key), keys.pad(value), mask))

    def _over_mask(self, query, key, value, segments: SegmentMask, cache) -> Tensor:
        """(B, T, H, Dh) -> the same. Fills `cache` with all that a row's keys hold."""
        index = segments.key_index
        key, value = ((x if index is None else x[index]).view(query.shape[0], -1, *x.shape[1:]) for x in (key, value))
        if cache is not None:
            cache.update(key, value, segments.lengths)
        return self._attend(query, key, value, segments.mask[:, None])

    def _attend(self, query, key, value, mask: Tensor | None) -> Tensor:
        """(B, T or K, heads, Dh) each -> (B, T, H, Dh); every implementation but eager means SDPA for these shapes."""
        attend = eager_attention_forward if self.config._attn_implementation == "eager" else arlow_attention_forward
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        return attend(self, query, key, value, mask, scaling=self.scaling, dropout=self.dropout_now)[0]


class ArlowCrossAttentionBlock(nn.Module):
    """Cross-attention and MLP, each behind a tanh gate that starts closed: then the block is the identity.

    Tokens that see no picture do not enter it (arXiv:2204.14198, section 3.1.2; QK-norm and groups as in Llama 3).
    """

    def __init__(self, config: ArlowConfig, layer_idx: int):
        super().__init__()
        self.attn_norm = ArlowRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = ArlowGroupedCrossAttention(config, layer_idx)
        self.attn_gate = nn.Parameter(torch.zeros(1, dtype=torch.float32))
        self.mlp_norm = ArlowRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ArlowMLP(config)
        self.mlp_gate = nn.Parameter(torch.zeros(1, dtype=torch.float32))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        segments: SegmentTable | SegmentMask,
        cache: CrossAttentionCacheLayer | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); text that sees no picture comes back untouched, bit for bit."""
        if isinstance(segments, SegmentMask):
            seeing = self._read(hidden_states, encoder_hidden_states, segments, cache)
            return torch.where(segments.sees[..., None], seeing, hidden_states)
        flat = hidden_states.flatten(0, 1)
        seeing = self._read(flat[segments.query_index], encoder_hidden_states, segments, cache)
        return flat.index_copy(0, segments.query_index, seeing).view_as(hidden_states)

    def _read(self, seeing: Tensor, *pictures) -> Tensor:
        attended = self.attn(self.attn_norm(seeing), *pictures)
        seeing = seeing + (self.attn_gate.float().tanh() * attended).to(seeing.dtype)
        return seeing + (self.mlp_gate.float().tanh() * self.mlp(self.mlp_norm(seeing))).to(seeing.dtype)


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
        """Text, and with `encoder_hidden_states` the pictures that its `<image>` tokens stand for.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, past + T), nonzero on text; left and right padding both work.
            position_ids: (B, T); where they restart inside a row (no cache) a new document begins.
            encoder_hidden_states: (N, P, D) one picture for each `<image>`, in the order of the tokens, row by row.
            encoder_attention_mask: (N, P) nonzero on encoder tokens that count; None: all.
            encoder_lengths: (N,) int64, with flat (K, D) `encoder_hidden_states`: how many of them each picture has.
            segments: which text sees which encoder tokens; None: what the `<image>` tokens of `input_ids` say.

        Raises:
            ValueError: inputs that do not go together (see `input_checks`); another number of pictures than `<image>`s.
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

        caches = cross_attention_caches(cache, self.config, pictures_come=encoder_hidden_states is not None)
        image_lengths = None
        if encoder_hidden_states is not None:
            self._check_pictures_can_be_read()
            encoder_hidden_states, image_lengths = flatten_pictures(
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

    def _check_pictures_can_be_read(self) -> None:
        if not self.config.use_cross_attention:
            raise ValueError(
                "this model was built with use_cross_attention False and cannot take encoder_hidden_states"
            )

    def _segments(
        self, input_ids, inputs_embeds, position_ids, attention_mask, image_lengths, cache, caches
    ) -> SegmentTable | SegmentMask | None:
        """What the text of this call sees of the pictures in the cache and of this call's, whose (N,) lengths come."""
        cached = caches[0] if caches and caches[0].is_initialized else None
        if image_lengths is None:
            return None if cached is None else cached_segments(cached.lengths, cached.get_seq_length())
        batch, width, _ = inputs_embeds.shape
        text_mask = None if attention_mask is None or attention_mask.ndim != 2 else attention_mask[:, -width:]
        is_image = image_positions(self.config, self.embed_tokens, input_ids, inputs_embeds)
        if input_ids is None and int(is_image.sum()) != len(image_lengths):
            raise ValueError(
                f"{len(image_lengths)} pictures came, which are placed by the <image> tokens of the text, and "
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


class ArlowForCausalLM(ArlowPreTrainedModel, PictureGenerationMixin):
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
