# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Arlow, a decoder-only language model with gated cross-attention blocks, on transformers' own machinery."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
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
from .generation_arlow import CrossAttentionCacheLayer, PictureGenerationMixin, cross_attention_caches
from .input_checks import refuse_wrong_inputs, refuse_wrong_labels, refuse_wrong_layout
from .linear import ArlowLinear
from .loss import next_token_loss
from .segments import SegmentTable, build_segment_table, document_ids, flatten_pictures, no_segments

logger = logging.get_logger(__name__)


class ArlowRMSNorm(nn.Module):
    """Root mean square norm with float32 statistics, rounded once to the input's dtype (arXiv:1910.07467)."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed = F.rms_norm(hidden_states.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class ArlowRotaryEmbedding(nn.Module):
    """cos and sin of each position, in float32 whatever the model's dtype: bf16 cannot tell neighbours apart."""

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: ArlowConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        init_function = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = init_function(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: ArlowConfig, **kwargs) -> tuple[Tensor, float]:
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) positions -> two (B, T, head_dim) float32; `x` only tells the device."""
        with torch.autocast(device_type=x.device.type, enabled=False):
            angles = position_ids[..., None].float() * self.inv_freq.to(x.device).float()
            angles = torch.cat((angles, angles), dim=-1)
            return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def rotary_factors(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Two (B, T, Dh) -> two (B, 1, T, Dh) that `apply_rotary` multiplies with; made once for all layers."""
    first, second = sin.chunk(2, dim=-1)
    return cos[:, None], torch.cat((-first, second), dim=-1)[:, None]


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel pairs (i, i + Dh/2) of (B, H, T, Dh) by `rotary_factors`, out of place (arXiv:2104.09864)."""
    swapped = states.roll(states.shape[-1] // 2, dims=-1)
    return torch.addcmul(states * cos, swapped, sin).to(states.dtype)


class ArlowMLP(nn.Module):
    """SwiGLU (arXiv:2002.05202), or the published two matrices with `mlp_gated=False`."""

    def __init__(self, config: ArlowConfig):
        super().__init__()
        sizes = config.hidden_size, config.intermediate_size
        self.gate_proj = ArlowLinear(*sizes, bias=config.mlp_bias) if config.mlp_gated else None
        self.up_proj = ArlowLinear(*sizes, bias=config.mlp_bias)
        self.down_proj = ArlowLinear(*reversed(sizes), bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


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
        cache: Cache | None = None,
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
        segments: SegmentTable,
        cache: CrossAttentionCacheLayer | None = None,
    ) -> Tensor:
        """Flat (Q, D) text that sees a picture, flat (K, D) encoder tokens new in this call -> (Q, D)."""
        query = self.q_norm(self._heads(self.q_proj(hidden_states)))
        key, value = self._keys_and_values(encoder_hidden_states, segments, cache)
        queries, keys = segments.query_runs, segments.key_runs
        if takes_varlen(self.config._attn_implementation, hidden_states, self.head_dim, self.dropout_now):
            attended = varlen_attention(
                query, key, value, query_runs=queries, key_runs=keys, scaling=self.scaling, is_causal=False
            )
            return self.o_proj(attended.flatten(-2))
        # Every other implementation reads pairs padded to the longest: none of transformers' takes them as they are.
        attend = eager_attention_forward if self.config._attn_implementation == "eager" else arlow_attention_forward
        mask = None if keys.padding_mask is None else keys.padding_mask[:, None, None]
        padded = (runs.pad(x).transpose(1, 2) for runs, x in ((queries, query), (keys, key), (keys, value)))
        attended, _ = attend(self, *padded, mask, scaling=self.scaling, dropout=self.dropout_now)
        return self.o_proj(queries.unpad(attended).flatten(-2))

    def _keys_and_values(self, encoder_hidden_states, segments: SegmentTable, cache) -> tuple[Tensor, Tensor]:
        """What the runs see, (K, Hkv, Dh) each, out of the cache and of this call's pictures; updates the cache."""
        pools = []
        if cache is not None and cache.is_initialized:
            pools.append((cache.keys.flatten(0, 1), cache.values.flatten(0, 1)))
        if encoder_hidden_states is not None:
            key = self.k_norm(self._heads(self.k_proj(encoder_hidden_states)))
            pools.append((key, self._heads(self.v_proj(encoder_hidden_states))))
        key, value = (torch.cat(pool) if len(pool) > 1 else pool[0] for pool in zip(*pools, strict=True))
        if segments.key_index is not None:
            key, value = key[segments.key_index], value[segments.key_index]
        if cache is not None and encoder_hidden_states is not None:
            has_picture = segments.keeps >= 0
            kept_keys, kept_values = (segments.key_runs.pad(x)[segments.keeps] for x in (key, value))
            cache.update(kept_keys, kept_values, segments.key_runs.lengths[segments.keeps] * has_picture)
        return key, value


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
        segments: SegmentTable,
        cache: CrossAttentionCacheLayer | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); rows of text that see no picture come back untouched, bit for bit."""
        flat = hidden_states.flatten(0, 1)
        seeing = flat[segments.query_index]
        attended = self.attn(self.attn_norm(seeing), encoder_hidden_states, segments, cache)
        seeing = seeing + (self.attn_gate.float().tanh() * attended).to(seeing.dtype)
        seeing = seeing + (self.mlp_gate.float().tanh() * self.mlp(self.mlp_norm(seeing))).to(seeing.dtype)
        return flat.index_copy(0, segments.query_index, seeing).view_as(hidden_states)


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
        segments: SegmentTable | None = None,
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
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Text, and with `encoder_hidden_states` the pictures that its `<image>` tokens stand for.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, past + T), nonzero on text; left and right padding both work.
            position_ids: (B, T); where they restart inside a row (no mask, no cache) a new document begins.
            encoder_hidden_states: (N, P, D) one picture for each `<image>`, in the order of the tokens, row by row.
            encoder_attention_mask: (N, P) nonzero on encoder tokens that count; None: all.

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
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, attention_mask, cache)

        caches = cross_attention_caches(cache, self.config, pictures_come=encoder_hidden_states is not None)
        segments = None
        if encoder_hidden_states is not None or (caches and caches[0].is_initialized):
            segments, encoder_hidden_states = self._segments(
                input_ids, position_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, caches
            )
        if self._runs_varlen(inputs_embeds, attention_mask, cache):
            kwargs["text_runs"] = TextRuns.of_documents(
                document_ids(position_ids.expand(inputs_embeds.shape[:2]), attention_mask)
            )
            causal_mask = None
        else:
            causal_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                # Beside a cache transformers does not look for packed documents; an empty one must not mix them.
                cache=None if is_first_call else cache,
                position_ids=position_ids,
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
    def _positions(inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
        """Counted from the first token of text, so that left padding changes nothing."""
        width = inputs_embeds.shape[1]
        if attention_mask is not None and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -width:]
        past = cache.get_seq_length() if cache is not None else 0
        return (torch.arange(width, device=inputs_embeds.device) + past)[None]

    def _runs_varlen(self, inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> bool:
        """Whole texts do where the gate opens the kernel; a step over a cache has one query and would gain nothing."""
        if attention_mask is not None and attention_mask.ndim != 2:
            return False
        if isinstance(cache, Cache):
            if any(layer.is_compileable for layer in cache.layers) or cache.get_seq_length() > 0:
                return False
        elif cache is not None:  # continuous batching's pages
            return False
        if self.config._attn_implementation != ARLOW_ATTENTION:
            return False
        dropout = self.layers[0].self_attn.dropout_now
        return takes_varlen(ARLOW_ATTENTION, inputs_embeds, self.config.head_dim, dropout)

    def _segments(
        self, input_ids, position_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, caches
    ) -> tuple[SegmentTable, Tensor | None]:
        """The segment table of this call, and its encoder tokens as one flat (K, D) list."""
        if not self.config.use_cross_attention:
            raise ValueError(
                "this model was built with use_cross_attention False and cannot take encoder_hidden_states"
            )
        if input_ids is None:
            raise ValueError("pictures are placed by the <image> tokens of input_ids; inputs_embeds cannot tell them")
        batch, width = input_ids.shape
        text_mask = None if attention_mask is None or attention_mask.ndim != 2 else attention_mask[:, -width:]
        cached = caches[0] if caches and caches[0].is_initialized else None
        if encoder_hidden_states is None:
            is_image, lengths = torch.zeros_like(input_ids, dtype=torch.bool), input_ids.new_zeros(0)
        else:
            encoder_hidden_states, lengths = flatten_pictures(encoder_hidden_states, encoder_attention_mask)
            is_image = input_ids == self.config.image_token_id
        if not lengths.numel() and cached is None:
            return no_segments(batch, input_ids.device), None
        table = build_segment_table(
            is_image,
            document_ids(position_ids.expand(batch, width), text_mask),
            lengths,
            cached_lengths=None if cached is None else cached.lengths,
            cached_width=0 if cached is None else cached.get_seq_length(),
        )
        return table, encoder_hidden_states


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
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
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
            **kwargs,
        )
        return head_output(self, outputs, labels, logits_to_keep, skip_logits=skip_logits, **kwargs)


def head_output(
    model,
    outputs,
    labels: Tensor | None,
    logits_to_keep: int | Tensor,
    *,
    skip_logits: bool = False,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
    **kwargs,
) -> CausalLMOutputWithPast:
    """Logits of the positions to keep (last n, 0: all; a list; a list a row; a mask), and with `labels` the loss.

    With `skip_logits` the loss alone, in a fraction of the memory and time (`loss.py`).
    """
    if skip_logits and labels is None:
        raise ValueError("skip_logits leaves nothing to return without labels; give labels or leave it out")
    hidden_states = outputs.last_hidden_state
    counting = {"num_items_in_batch": num_items_in_batch, "shift_labels": shift_labels}
    logits = loss = None
    if skip_logits:
        loss = next_token_loss(hidden_states, model.lm_head, labels, **counting)
        if loss is None:
            logger.warning_once("skip_logits has no effect: the weight of lm_head is not a plain matrix on one device")
    if loss is None:
        logits = model.lm_head(kept_positions(hidden_states, logits_to_keep))
    if loss is None and labels is not None:
        loss = model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **counting, **kwargs)
    return CausalLMOutputWithPast(
        loss=loss,
        logits=logits,
        cache=outputs.cache,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def kept_positions(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    if logits_to_keep.ndim == 2:
        return hidden_states.take_along_dim(logits_to_keep[..., None], dim=1)
    return hidden_states[:, logits_to_keep]


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
