"""Encoder tokens to the decoder's width."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

PERCEIVER_DEPTH = 2


class TileEmbedding(nn.Embedding):
    """Starts at zero, so that a thumbnail alone is what it is without tiles."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class UnitLinear(nn.Linear):
    """Starts by giving values of about the size of those it gets, whatever its width."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        nn.init.zeros_(self.bias)


class Projector(nn.Module):
    """What the three kinds have in common: a learned place for the tiles of an image.

    Args:
        num_places: Tile ids that may come; 0: images have no tiles.
    """

    norm: nn.LayerNorm
    tile_embedding: TileEmbedding | None

    def __init__(self, in_dim: int, num_places: int = 0) -> None:
        super().__init__()
        self.tile_embedding = TileEmbedding(num_places, in_dim) if num_places else None

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype  # a quantised linear layer's is that of its packing

    def place(
        self, features: Float[Tensor, "tiles patches features"], tile_ids: Int[Tensor, " tiles"]
    ) -> Float[Tensor, "tiles patches features"]:
        assert self.tile_embedding is not None
        return features + self.tile_embedding(tile_ids)[:, None].to(features.dtype)


class LinearProjector(Projector):
    """A norm and one linear layer."""

    def __init__(self, in_dim: int, out_dim: int, *, num_places: int = 0) -> None:
        super().__init__(in_dim, num_places)
        self.norm = nn.LayerNorm(in_dim)
        self.fc = nn.Linear(in_dim, out_dim)

    def forward(self, features: Float[Tensor, "*tokens features"]) -> Float[Tensor, "*tokens dim"]:
        return self.fc(self.norm(features))


class MLPProjector(Projector):
    """Two linear layers with a GELU between (Liu et al., 2023, arXiv:2310.03744); a norm before each layer is ours.

    With these norms and sizes of weights the decoder gets tokens of one size, whatever the encoder: else
    cross-attention starts deaf. Norms inside learn faster than one behind both layers (experiments/encoders).
    """

    def __init__(self, in_dim: int, out_dim: int, *, num_places: int = 0) -> None:
        super().__init__(in_dim, num_places)
        self.norm = nn.LayerNorm(in_dim)
        self.fc1 = UnitLinear(in_dim, out_dim)
        self.hidden_norm = nn.LayerNorm(out_dim)
        self.fc2 = UnitLinear(out_dim, out_dim)

    def forward(self, features: Float[Tensor, "*tokens features"]) -> Float[Tensor, "*tokens dim"]:
        return self.fc2(F.gelu(self.hidden_norm(self.fc1(self.norm(features)))))


class PerceiverResampler(Projector):
    """A fixed number of latents that read the tokens of an image (Alayrac et al., 2022, arXiv:2204.14198, 3.1.1)."""

    def __init__(self, in_dim: int, out_dim: int, *, num_latents: int, num_heads: int, num_places: int = 0) -> None:
        super().__init__(in_dim, num_places)
        self.norm = nn.LayerNorm(in_dim)
        self.fc = nn.Linear(in_dim, out_dim)
        self.latents = nn.Parameter(torch.randn(num_latents, out_dim))
        self.layers = nn.ModuleList(PerceiverLayer(out_dim, num_heads) for _ in range(PERCEIVER_DEPTH))
        self.out_norm = nn.LayerNorm(out_dim)

    def forward(
        self, features: Float[Tensor, "tokens features"], lengths: Int[Tensor, " images"]
    ) -> Float[Tensor, "images latents dim"]:
        """The tokens of the images, one image after another; `lengths` says how many each has."""
        tokens = self.fc(self.norm(features))
        latents = self.latents.expand(len(lengths), -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens, lengths.tolist())
        return self.out_norm(latents)


class PerceiverLayer(nn.Module):
    """Latents attend to the tokens of their image and to each other."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.token_norm, self.latent_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.q_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(
        self,
        latents: Float[Tensor, "images latents dim"],
        tokens: Float[Tensor, "tokens dim"],
        lengths: list[int],
    ) -> Float[Tensor, "images latents dim"]:
        normed = self.latent_norm(latents)
        query, own = self.q_proj(normed), self.kv_proj(normed)
        read = self.kv_proj(self.token_norm(tokens)).split(lengths)
        attended: dict[int, Tensor] = {}
        for length in set(lengths):  # images of one length go together, and nothing is padded
            numbers = [number for number, other in enumerate(lengths) if other == length]
            keys = torch.cat([torch.stack([read[number] for number in numbers]), own[numbers]], dim=1)
            attended |= zip(numbers, self._attend(query[numbers], *keys.chunk(2, dim=-1)), strict=True)
        latents = latents + self.o_proj(torch.stack([attended[number] for number in range(len(lengths))]))
        return latents + self.fc2(F.gelu(self.fc1(self.mlp_norm(latents))))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
