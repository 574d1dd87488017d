"""Floating-point operations that a model needs for what a batch holds, whatever kernels run and however it is padded.

A product costs 2 operations a weight and token. Its gradients cost as much again each: of the input where something
behind it is trained, of the weight where that is. Attention is counted too, but not that inside an image encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from arlow_vl.training.components import component_of
from arlow_vl.training.policy import Policy

Use = str
"""What a weight is multiplied with: one of the fields of `Operations`."""


@dataclass
class Counts:
    """What batches hold."""

    tokens: int = 0
    """Of texts, without padding."""
    labels: int = 0
    """Tokens that are learnt: the head is multiplied with no other."""
    images: int = 0
    tiles: int = 0
    """Images or their tiles, of one size, that the encoder sees."""
    patches: int = 0
    """Those of images in their native resolution, that the encoder sees."""
    features: int = 0
    """Tokens that the encoder made earlier."""

    def add(self, batch: Mapping[str, Any], labels: int) -> None:
        self.tokens += batch.get("num_tokens", batch["input_ids"].numel())
        self.labels += labels
        self.images += batch.get("num_images", 0)
        pixels, features = batch.get("pixel_values"), batch.get("image_features")
        if pixels is not None:
            self.tiles += len(pixels) if pixels.ndim == 4 else 0
            self.patches += len(pixels) if pixels.ndim != 4 else 0
        if features is not None:
            self.features += features.shape[:-1].numel()


def pairs_of(batch: Mapping[str, Any]) -> Tensor | None:
    """Pairs of tokens in causal self-attention, a scalar on the batch's device: a token sees those before it in its
    document, and itself."""
    positions = batch.get("position_ids")
    return None if positions is None else positions.sum() + positions.numel()


@dataclass(frozen=True)
class Operations:
    """Operations of a training step for each thing that it holds."""

    token: float
    """A token, in the decoder's layers without attention itself."""
    label: float
    """A token that is learnt, in the head."""
    seeing: float
    """A token that reads an image, in the cross-attention blocks."""
    read: float
    """An image token that is read, in their keys and values."""
    projected: float
    """An encoder token, in the projector."""
    encoded: float
    """An encoder token, in the encoder."""
    pair: float
    """A pair of tokens, in self-attention."""
    cross_pair: float
    """A token and an image token, in cross-attention."""
    patches_per_tile: int
    latents: int | None
    """Image tokens that a perceiver makes of each image; None: as many as the encoder."""

    def of(self, counts: Counts, pairs: float) -> float:
        encoded = counts.tiles * self.patches_per_tile + counts.patches
        projected = encoded + counts.features
        read = projected if self.latents is None else counts.images * self.latents
        seeing = counts.tokens if counts.images else 0
        return (
            self.token * counts.tokens
            + self.label * counts.labels
            + self.pair * pairs
            + self.seeing * seeing
            + self.read * read
            + self.cross_pair * seeing * read / max(1, counts.images)
            + self.projected * projected
            + self.encoded * encoded
        )


def operations_of(model: Any, policy: Policy) -> Operations:
    """Those of a model with the gradients that a policy asks for."""
    config = model.config.get_text_config()
    is_tied = model.get_input_embeddings().weight is getattr(model.lm_head, "weight", None)
    per: dict[Use, float] = dict.fromkeys(("token", "label", "seeing", "read", "projected", "encoded"), 0.0)
    for name, parameter in model.named_parameters():
        use = _use_of(name, is_tied)
        if use is None or parameter.ndim < 2:
            continue
        goes_back = use != "encoded" or policy["vision"].is_trained
        per[use] += 2 * (1 + parameter.requires_grad + goes_back) * parameter.numel()
    width = config.num_attention_heads * config.head_dim
    crossing = sum("cross_block" in name and name.endswith("attn_gate") for name, _ in model.named_parameters())
    inner = getattr(model, "model", None)
    latents = getattr(getattr(inner, "projector", None), "latents", None)
    vision = getattr(inner, "vision", None)
    return Operations(
        **per,
        pair=3.0 * 4 * width * config.num_hidden_layers,
        cross_pair=3.0 * 4 * width * crossing,
        patches_per_tile=0 if vision is None else vision.num_patches,
        latents=None if latents is None else len(latents),
    )


def _use_of(name: str, is_tied: bool) -> Use | None:
    """None: it is looked up, and multiplied with nothing."""
    component, parts = component_of(name), name.split(".")
    if parts[-1] == "latents":
        return None
    if component == "cross_attention":
        return "read" if "k_proj" in parts or "v_proj" in parts else "seeing"
    if component == "decoder":
        if "embed_tokens" in parts:
            return "label" if is_tied else None
        return "label" if "lm_head" in parts else "token"
    return "encoded" if component == "vision" else "projected"
