"""Projectors of encoder tokens to the decoder's width, with their places in the image."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

PERCEIVER_DEPTH = 2
OCTAVES = 5
"""Octaves from the slowest wave, half a period over the image, to the fastest, 32 half periods for a grid of 32."""
PLACE_SCALE = 0.5
"""Initial scale of the places, beside features of variance 1; it is learned (experiments/encoders)."""


class TileEmbedding(nn.Embedding):
    """An embedding that starts at zero, so that a thumbnail alone is what it is without tiles."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class UnitLinear(nn.Linear):
    """A linear layer whose outputs start at about the size of its inputs, whatever its width."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        nn.init.zeros_(self.bias)


class PlaceEmbedding(nn.Module):
    """Row and column of a token as waves over the image, to be added to its features.

    Sines and cosines as in Vaswani et al. (2017, arXiv:1706.03762, section 3.5), half of them of the row and half of
    the column, but of the place relative to the whole image. So only their scale is learned, no grid is too large, and
    a place is the same in every form of an image.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, PLACE_SCALE)

    def forward(self, places: Float[Tensor, "*tokens 2"]) -> Float[Tensor, "*tokens features"]:
        """`places` as `vision.places` gives them; a token without one gets zeros."""
        count = math.ceil(self.dim / 4)
        waves = math.pi * 2 ** torch.linspace(0, OCTAVES, count, device=places.device, dtype=torch.float32)
        angles = places.float()[..., None] * waves  # (..., 2, count)
        embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., : self.dim]
        return self.scale * embedding * (places >= 0).all(-1, keepdim=True)


class Projector(nn.Module):
    """Common part of the three projectors: tokens get their places, behind the first norm.

    Args:
        num_tile_ids: Number of tile ids; 0: images have no tiles.
    """

    norm: nn.LayerNorm
    place_embedding: PlaceEmbedding
    tile_embedding: TileEmbedding | None

    def __init__(self, in_dim: int, num_tile_ids: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.place_embedding = PlaceEmbedding(in_dim)
        self.tile_embedding = TileEmbedding(num_tile_ids, in_dim) if num_tile_ids else None

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype  # a quantised linear layer's is that of its packing

    def mark_tiles(
        self, features: Float[Tensor, "tiles patches features"], tile_ids: Int[Tensor, " tiles"]
    ) -> Float[Tensor, "tiles patches features"]:
        """Adds the embedding that tells the thumbnail from the tiles, and one tile from another."""
        assert self.tile_embedding is not None
        return features + self.tile_embedding(tile_ids)[:, None].to(features.dtype)

    def placed(
        self, features: Float[Tensor, "*tokens features"], places: Float[Tensor, "*places 2"]
    ) -> Float[Tensor, "*tokens features"]:
        """Features of unit variance with their places; one image's places may serve all of a batch."""
        normed = self.norm(features)
        return normed + self.place_embedding(places).to(normed.dtype)


class LinearProjector(Projector):
    """A norm and one linear layer."""

    def __init__(self, in_dim: int, out_dim: int, *, num_tile_ids: int = 0) -> None:
        super().__init__(in_dim, num_tile_ids)
        self.fc = nn.Linear(in_dim, out_dim)

    def forward(
        self, features: Float[Tensor, "*tokens features"], places: Float[Tensor, "*places 2"]
    ) -> Float[Tensor, "*tokens dim"]:
        return self.fc(self.placed(features, places))


class MLPProjector(Projector):
    """Two linear layers with a GELU between (Liu et al., 2023, arXiv:2310.03744); a norm before each layer is ours.

    With these norms and initial weights the decoder gets tokens of one size, whatever the encoder; without them
    cross-attention starts with little effect. Norms inside learn faster than one behind both layers
    (experiments/encoders).
    """

    def __init__(self, in_dim: int, out_dim: int, *, num_tile_ids: int = 0) -> None:
        super().__init__(in_dim, num_tile_ids)
        self.fc1 = UnitLinear(in_dim, out_dim)
        self.hidden_norm = nn.LayerNorm(out_dim)
        self.fc2 = UnitLinear(out_dim, out_dim)

    def forward(
        self, features: Float[Tensor, "*tokens features"], places: Float[Tensor, "*places 2"]
    ) -> Float[Tensor, "*tokens dim"]:
        return self.fc2(F.gelu(self.hidden_norm(self.fc1(self.placed(features, places)))))


class PerceiverResampler(Projector):
    """A fixed number of latents that read the tokens of an image (Alayrac et al., 2022, arXiv:2204.14198, 3.1.1)."""

    def __init__(self, in_dim: int, out_dim: int, *, num_latents: int, num_heads: int, num_tile_ids: int = 0) -> None:
        super().__init__(in_dim, num_tile_ids)
        self.fc = nn.Linear(in_dim, out_dim)
        self.latents = nn.Parameter(torch.randn(num_latents, out_dim))
        self.layers = nn.ModuleList(PerceiverLayer(out_dim, num_heads) for _ in range(PERCEIVER_DEPTH))
        self.out_norm = nn.LayerNorm(out_dim)

    def forward(
        self,
        features: Float[Tensor, "tokens features"],
        places: Float[Tensor, "tokens 2"],
        lengths: Int[Tensor, " images"],
    ) -> Float[Tensor, "images latents dim"]:
        """Latents of images whose tokens come one image after another; `lengths` is the number of tokens of each."""
        tokens = self.fc(self.placed(features, places))
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
            # Stacked, not indexed: a list of numbers would be copied to the device, which waits for it.
            some_query, some_own = (torch.stack([x[number] for number in numbers]) for x in (query, own))
            keys = torch.cat([torch.stack([read[number] for number in numbers]), some_own], dim=1)
            attended |= zip(numbers, self._attend(some_query, *keys.chunk(2, dim=-1)), strict=True)
        latents = latents + self.o_proj(torch.stack([attended[number] for number in range(len(lengths))]))
        return latents + self.fc2(F.gelu(self.fc1(self.mlp_norm(latents))))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
