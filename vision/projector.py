"""Encoder patch tokens to the decoder's width."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MLPProjector(nn.Module):
    """Two linear layers with a GELU between (Liu et al., 2023, arXiv:2310.03744); the norms around them are ours.

    The last norm gives the decoder tokens of one size, whatever the encoder: else cross-attention starts deaf.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.fc1 = nn.Linear(in_dim, out_dim)
        self.fc2 = nn.Linear(out_dim, out_dim)
        self.out_norm = nn.LayerNorm(out_dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype  # a quantised linear layer's is that of its packing

    def forward(self, features: Float[Tensor, "pictures patches features"]) -> Float[Tensor, "pictures patches dim"]:
        return self.out_norm(self.fc2(F.gelu(self.fc1(self.norm(features)))))
