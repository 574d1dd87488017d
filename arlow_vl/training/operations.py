"""Floating-point operations that a model needs for the content of a batch, whatever its kernels and padding.

A matrix product costs 2 operations per weight and token. Each of its two gradients costs the same: of the input, if
anything before it is trained, and of the weight, if it is trained. Attention is counted, except inside an image
encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from arlow_vl.training.components import component_of
from arlow_vl.training.policy import Policy

Use = str
"""Name of the field of `Operations` for the inputs that a weight is multiplied with."""


@dataclass
class Counts:
    """Content of one or several batches."""

    tokens: int = 0
    """Tokens of texts, without padding."""
    labels: int = 0
    """Tokens that are learnt, the only ones that the head computes logits for."""
    images: int = 0
    tiles: int = 0
    """Images or tiles of one size that are encoded."""
    patches: int = 0
    """Patches that are encoded of images in native resolution."""
    features: int = 0
    """Image tokens that were encoded earlier and cached."""

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
    """Returns the number of token pairs in causal self-attention, a scalar on the batch's device; None if unknown.

    A token attends to itself and to those before it in its document.
    """
    positions = batch.get("position_ids")
    return None if positions is None else positions.sum() + positions.numel()


@dataclass(frozen=True)
class Operations:
    """Operations of a training step for each unit of its content."""

    token: float
    """Per token, in the weights of the decoder's layers."""
    label: float
    """Per learnt token, in the head."""
    seeing: float
    """Per token that attends to an image, in the weights of the cross-attention blocks."""
    read: float
    """Per image token, in the key and value projections of the cross-attention blocks."""
    projected: float
    """Per encoder token, in the projector."""
    encoded: float
    """Per encoder token, in the encoder."""
    pair: float
    """Per pair of tokens, in self-attention."""
    cross_pair: float
    """Per pair of a token and an image token, in cross-attention."""
    patches_per_tile: int
    latents: int | None
    """Image tokens that a perceiver projector makes of each image; None: as many as the encoder."""

    def of(self, counts: Counts, pairs: float) -> float:
        """Returns the operations for this content, with `pairs` of tokens in self-attention."""
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
    """Returns the operations of a model, with the gradients that the policy needs."""
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
    """Returns the use of a weight; None if it is looked up, not multiplied."""
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
