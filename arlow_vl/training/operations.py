"""Floating-point operations that a model needs for the content of a batch, whatever its kernels and padding.

A matrix product costs 2 operations per weight and token. Each of its two gradients costs the same: of the input, if
anything before it is trained, and of the weight, if it is trained. Attention is counted, except inside an image
encoder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from arlow_vl.training.components import component_of, is_adapter

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


def operations_of(model: Any) -> Operations:
    """Returns the operations of a model, with the gradients that its trained parameters need.

    Walks the parameters in the order of a forward pass. The input of a weight has a gradient if any parameter before it
    is trained: of encoder and projector where image tokens are the input; of the decoder, its cross-attention blocks
    and what these read where text is.
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
    """Yields the named parameters; a head that is tied to the embedding comes again at the end."""
    yield from model.named_parameters()
    head = getattr(model.lm_head, "weight", None)
    if head is model.get_input_embeddings().weight:
        yield "lm_head.weight", head


def is_output(name: str) -> bool:
    """Returns True for the weight of an attention's output projection."""
    return "o_proj" in name.split(".") and name.endswith(".weight") and not is_adapter(name)


def use_of(name: str) -> Use | None:
    """Returns the use of a weight; None if it is looked up, not multiplied."""
    component, parts = component_of(name), name.split(".")
    if parts[-1] == "latents" or "embed_tokens" in parts:
        return None
    if component == "cross_attention":
        return "read" if "k_proj" in parts or "v_proj" in parts else "seeing"
    if component == "decoder":
        return "label" if "lm_head" in parts else "token"
    return "encoded" if component == "vision" else "projected"
