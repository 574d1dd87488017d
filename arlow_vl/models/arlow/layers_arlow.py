# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Parts of a decoder layer: norm, rotary embedding, MLP, self-attention and the gated cross-attention block."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention import (
    ARLOW_ATTENTION,
    arlow_attention_forward,
    eager_attention_forward,
    takes_varlen,
    varlen_attention,
)
from .cache_arlow import CrossAttentionCacheLayer
from .configuration_arlow import ArlowConfig
from .linear import ArlowLinear
from .runs import Runs
from .segments import SegmentMask, SegmentTable


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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ArlowRotaryEmbedding":
        """Moves and casts as any module does (`to`, `half`, `to_empty`), but keeps the frequencies in float32."""
        before = dict(self.named_buffers(remove_duplicate=False))
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers(remove_duplicate=False):
            if buffer.dtype != torch.float32:  # with 8 bits the angle of position 500 would be off by a radian
                self._buffers[name] = before[name].to(buffer.device)
        return self

    @staticmethod
    def compute_default_rope_parameters(config: ArlowConfig, **kwargs) -> tuple[Tensor, float]:
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) positions -> two (B, T, head_dim) float32; `x` only tells the device."""
        if self.rope_type == "dynamic":  # else the longest call so far would say the frequencies
            self.inv_freq, self.max_seq_len_cached = self.original_inv_freq, self.original_max_seq_len
        return self._turns(x, position_ids)

    @dynamic_rope_update
    def _turns(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        # Each frequency twice, half a head apart: transformers' pairing (i, i + Dh/2), not the paper's (2i, 2i + 1).
        with torch.autocast(device_type=x.device.type, enabled=False):
            angles = position_ids[..., None].float() * self.inv_freq.to(x.device).float()
            angles = torch.cat((angles, angles), dim=-1)
            return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def rotary_factors(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Two (B, T, Dh) -> two (B, 1, T, Dh) that `apply_rotary` multiplies with; made once for all layers."""
    # (a, b) becomes (a cos - b sin, b cos + a sin). With the sign in the factor, swapping halves needs no negation.
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
        cross_cache: CrossAttentionCacheLayer | None = None,
    ) -> Tensor:
        """Attends from `hidden_states` to images; the result has their shape.

        Args:
            hidden_states: (Q, D), the text that sees an image, with a table; (B, T, D), all text, with a mask.
            encoder_hidden_states: (K, D), the encoder tokens of new images; None: there are none.
        """
        query = self.q_norm(self._heads(self.q_proj(hidden_states)))
        pool = self._pool(encoder_hidden_states, segments.entries.places, cross_cache)
        attend = self._over_mask if isinstance(segments, SegmentMask) else self._over_runs
        return self.o_proj(attend(query, *pool, segments, cross_cache).flatten(-2))

    def _pool(self, encoder_hidden_states: Tensor | None, places: Tensor | None, cross_cache):
        """(K, Hkv, Dh) keys and values: those in the cache, then those of this call's images.

        An image is projected once, however many texts share it.
        """
        pools = []
        if cross_cache is not None and cross_cache.is_initialized:
            pools.append((cross_cache.keys.flatten(0, 1), cross_cache.values.flatten(0, 1)))
        if encoder_hidden_states is not None:
            key = self.k_norm(self._heads(self.k_proj(encoder_hidden_states)))
            value = self._heads(self.v_proj(encoder_hidden_states))
            pools.append((key, value) if places is None else (key[places], value[places]))
        key, value = (torch.cat(pool) if len(pool) > 1 else pool[0] for pool in zip(*pools, strict=True))
        return key, value

    def _over_runs(self, query, key, value, segments: SegmentTable, cross_cache) -> Tensor:
        """(Q, H, Dh) -> the same. Fills the cache with what each row will see later."""
        # Filled out of the pool before it is narrowed to what this call's text sees: a row without text keeps
        # images that none of its tokens looks at here.
        if cross_cache is not None:
            cross_cache.update(key[segments.kept], value[segments.kept], segments.kept_lengths)
        if segments.key_index is not None:
            key, value = key[segments.key_index], value[segments.key_index]
        queries, keys = segments.query_runs, segments.key_runs
        if takes_varlen(self.config._attn_implementation, query, self.head_dim, self.dropout_now):
            return varlen_attention(
                query, key, value, query_runs=queries, key_runs=keys, scaling=self.scaling, is_causal=False
            )
        if segments.padded_order is not None:
            return self._over_groups(query, key, value, segments)
        (runs,) = segments.padded_runs
        return self._over_padded_runs(query, key, value, runs.query_runs, runs.key_runs)

    @torch.compiler.disable  # batches differ in the number of groups, and each would be a graph of its own
    def _over_groups(self, query, key, value, segments: SegmentTable) -> Tensor:
        parts = []
        for runs in segments.padded_runs:
            q, k, v = query[runs.query_index], key[runs.key_index], value[runs.key_index]
            parts.append(self._over_padded_runs(q, k, v, runs.query_runs, runs.key_runs))
        return torch.cat(parts)[segments.padded_order]

    def _over_padded_runs(self, query, key, value, queries: Runs, keys: Runs) -> Tensor:
        # Padded queries need no mask: what they compute is dropped by `unpad`. Padded keys would be read.
        mask = None if keys.padding_mask is None else keys.padding_mask[:, None, None]
        return queries.unpad(self._attend(queries.pad(query), keys.pad(key), keys.pad(value), mask))

    def _over_mask(self, query, key, value, segments: SegmentMask, cross_cache) -> Tensor:
        """(B, T, H, Dh) -> the same. Fills the cache with all keys of a row, where new images are among them."""
        index, kept = segments.key_index, segments.kept
        pool = key, value
        key, value = ((x if index is None else x[index]).view(query.shape[0], -1, *x.shape[1:]) for x in pool)
        if cross_cache is not None and kept is not None:
            held = (key, value) if kept is index else (x[kept] for x in pool)
            cross_cache.update(*held, segments.kept_lengths, segments.kept_images)
        return self._attend(query, key, value, segments.mask[:, None])

    def _attend(self, query, key, value, mask: Tensor | None) -> Tensor:
        """(B, T or K, heads, Dh) each -> (B, T, H, Dh); every implementation but eager means SDPA for these shapes."""
        attend = eager_attention_forward if self.config._attn_implementation == "eager" else arlow_attention_forward
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        return attend(self, query, key, value, mask, scaling=self.scaling, dropout=self.dropout_now)[0]


class ArlowCrossAttentionBlock(nn.Module):
    """Cross-attention and MLP, each behind a tanh gate that starts closed: then the block is the identity.

    Tokens that see no image do not enter it (arXiv:2204.14198, section 3.1.2; QK-norm and groups as in Llama 3).

    The gates have the dtype of the model's other weights, since FSDP2 shards only weights of one dtype together. What
    must not be rounded is computed in float32: the tanh, and the product with what it lets through.
    """

    def __init__(self, config: ArlowConfig, layer_idx: int):
        super().__init__()
        self.attn_norm = ArlowRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = ArlowGroupedCrossAttention(config, layer_idx)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.mlp_norm = ArlowRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ArlowMLP(config)
        self.mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        segments: SegmentTable | SegmentMask,
        cross_cache: CrossAttentionCacheLayer | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); text that sees no image comes back untouched, bit for bit."""
        if isinstance(segments, SegmentMask):
            seeing = self._read(hidden_states, encoder_hidden_states, segments, cross_cache)
            return torch.where(segments.sees[..., None], seeing, hidden_states)
        # Gather, compute, put back: only text that sees an image costs norms, MLP and attention. index_copy leaves the
        # rest as it is, where adding zeros would turn -0 into 0.
        flat = hidden_states.flatten(0, 1)
        seeing = self._read(flat[segments.query_index], encoder_hidden_states, segments, cross_cache)
        return flat.index_copy(0, segments.query_index, seeing).view_as(hidden_states)

    def _read(self, seeing: Tensor, *images) -> Tensor:
        attended = self.attn(self.attn_norm(seeing), *images)
        seeing = seeing + (self.attn_gate.float().tanh() * attended).to(seeing.dtype)
        return seeing + (self.mlp_gate.float().tanh() * self.mlp(self.mlp_norm(seeing))).to(seeing.dtype)


def with_zero_gradients(states: Tensor, unused: Iterable[Tensor | None]) -> Tensor:
    """`states`, bit for bit, with tensors in its graph that it does not depend on: their gradients are zeros, not None.

    Data-parallel training waits for a gradient of every weight on every rank, also where a batch has no image. The sum
    of no entry of a tensor is 0 whatever the tensor holds, and taking 0 away changes no number, nor the sign of a zero.
    """
    here = [x.to_local() if hasattr(x, "to_local") else x for x in unused if x is not None and x.requires_grad]
    taken = [x.unsqueeze(0)[:0].sum().to(states) for x in here]
    return states - torch.stack(taken).sum() if taken else states
