"""Floating-point operations that a model needs for what a batch holds, whatever kernels run and however it is padded.

A product costs 2 operations a weight and token. Its gradients cost as much again each: of the input where something in
front of it is trained, of the weight where that is. Attention is counted too, but not that inside an image encoder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from arlow_vl.training.stages import component_of, is_adapter

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


def operations_of(model: Any) -> Operations:
    """Those of a model with the gradients that its parameters ask for.

    Parameters come in the order in which a forward pass takes them. So what a weight is multiplied with has a gradient
    where a parameter before it is trained, of the encoder and projector for these and what is read of images, of the
    decoder, its cross-attention blocks and what they read for text.
    """
    config = model.config.get_text_config()
    per_pair = 4 * config.num_attention_heads * config.head_dim
    per: dict[str, float] = dict.fromkeys(
        ("token", "label", "seeing", "read", "projected", "encoded", "pair", "cross_pair"), 0.0
    )
    images_go_back = text_goes_back = False
    for name, parameter in parameters_in_order(model):
        component, use, is_trained = component_of(name), use_of(name), parameter.requires_grad
        if component == "cross_attention" and is_output(name):
            text_goes_back |= images_go_back
        if component in ("cross_attention", "decoder") and is_output(name):
            per["cross_pair" if component == "cross_attention" else "pair"] += (3 if text_goes_back else 1) * per_pair
        is_of_images = component in ("vision", "projector")
        goes_back = images_go_back if is_of_images or use == "read" else text_goes_back
        if use is not None and parameter.ndim >= 2:
            per[use] += 2 * (1 + is_trained + goes_back) * parameter.numel()
        images_go_back |= is_trained and is_of_images
        text_goes_back |= is_trained and not is_of_images
    inner = getattr(model, "model", None)
    latents = getattr(getattr(inner, "projector", None), "latents", None)
    vision = getattr(inner, "vision", None)
    return Operations(
        **per,
        patches_per_tile=0 if vision is None else vision.num_patches,
        latents=None if latents is None else len(latents),
    )


def parameters_in_order(model: Any) -> Iterator[tuple[str, Parameter]]:
    """A head that is tied to the embedding comes a second time, as the last."""
    yield from model.named_parameters()
    head = getattr(model.lm_head, "weight", None)
    if head is model.get_input_embeddings().weight:
        yield "lm_head.weight", head


def is_output(name: str) -> bool:
    """Whether this is the weight behind an attention."""
    return "o_proj" in name.split(".") and name.endswith(".weight") and not is_adapter(name)


def use_of(name: str) -> Use | None:
    """None: it is looked up, and multiplied with nothing."""
    component, parts = component_of(name), name.split(".")
    if parts[-1] == "latents" or "embed_tokens" in parts:
        return None
    if component == "cross_attention":
        return "read" if "k_proj" in parts or "v_proj" in parts else "seeing"
    if component == "decoder":
        return "label" if "lm_head" in parts else "token"
    return "encoded" if component == "vision" else "projected"
