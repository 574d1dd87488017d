# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The decoder's small parts: norm, rotary embedding, MLP."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration_arlow import ArlowConfig
from .linear import ArlowLinear


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
