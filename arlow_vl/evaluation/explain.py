"""Cross-attention weights over the image for each word that a model writes (`heat_maps` draws them)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from arlow_vl.data.prompts import Message, decode_token, encode_prompt
from arlow_vl.evaluation.generation import write_greedily
from arlow_vl.evaluation.likelihood import pad_left
from arlow_vl.models.arlow.segments import SegmentTable
from vision.forms.native_resolution import unpatchify
from vision.places import grid_of
from vision.projector import PerceiverLayer, PerceiverResampler
from vision.transform import MAX_GRID, ImageTransform


@dataclass(frozen=True)
class WordHeat:
    """A word that the model wrote, and its cross-attention over the encoder's tokens."""

    word: str
    heat: Tensor
    """(encoder tokens,) float32, sums to 1: the mean over heads, the chosen layers and the word's tokens."""

    @property
    def peak(self) -> float:
        """The largest weight, as a multiple of the uniform weight."""
        return float(self.heat.max() * self.heat.numel())


@dataclass(frozen=True)
class View:
    """One form in which the encoder saw the image: as a whole, or cut into tiles, which are put together again here."""

    label: str
    image: Image.Image
    places: Tensor
    """(rows, columns) int64: index of each patch among the image's encoder tokens."""


def encoder_views(
    images: dict[str, Tensor], transform: ImageTransform, tokens: int, *, prefix_tokens: int = 0
) -> list[View]:
    """Returns the views of one image, given as the image processor's outputs, the most detailed last.

    `tokens` is the number of encoder tokens of the image, `prefix_tokens` the number before each tile's patches.
    """
    pixel_values = images["pixel_values"]
    if "image_grids" in images:
        (native,) = unpatchify(pixel_values, images["image_grids"])
        grid = grid_of(tokens - prefix_tokens, *native.shape[1:])  # an encoder may merge patches
        places = torch.arange(tokens)[prefix_tokens:].view(grid)
        return [View("native resolution", transform.image_of(native), places)]
    count, _, height, width = pixel_values.shape
    each = tokens // count
    grid = grid_of(each - prefix_tokens, height, width)
    places = torch.arange(tokens).view(count, each)[:, prefix_tokens:].unflatten(1, grid)
    whole = View("the whole", transform.image_of(pixel_values[0]), places[0])
    if count == 1:
        return [whole]
    columns = int(((images["tile_ids"][1:] - 1) % MAX_GRID).max()) + 1
    mosaic = pixel_values[1:].unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    cut = places[1:].unflatten(0, (-1, columns)).permute(0, 2, 1, 3).flatten(2, 3).flatten(0, 1)
    label = f"{(count - 1) // columns} x {columns} tiles"
    return [whole, View(label, transform.image_of(mosaic), cut)]


def views_under(
    words: Sequence[WordHeat], images: dict[str, Tensor], model: Any, transform: ImageTransform
) -> list[View]:
    """Returns the views of one image over which the heat of `words` is drawn; `words` may be empty."""
    if words:
        tokens = words[0].heat.numel()
    else:
        on_device = {name: value.to(model.device) for name, value in images.items()}
        tokens = read_image_tokens(model, on_device).num_encoder_tokens
    return encoder_views(images, transform, tokens, prefix_tokens=model.model.vision.num_kept_prefix_tokens)


@dataclass(frozen=True)
class Written:
    """An answer about one image, with the cross-attention weights of each of its tokens."""

    prompt: Tensor
    """(1, T) int64."""
    ids: Tensor
    """(1, N) int64, the end token included."""
    heat: Tensor
    """(layers, N, encoder tokens) float32; each row sums to 1."""


def explain_completion(
    model: Any,
    tokenizer: Any,
    messages: Sequence[Message],
    images: dict[str, Tensor],
    *,
    layers: Sequence[int],
    max_new_tokens: int,
) -> list[WordHeat]:
    """Generates an answer about one image greedily, and returns the heat of each word, the mean over the layers.

    Raises:
        As `write_and_watch`.
    """
    written = write_and_watch(model, tokenizer, messages, images, layers=layers, max_new_tokens=max_new_tokens)
    return words_of(tokenizer, written.ids[0].tolist(), written.heat.mean(0))


def explain_image(
    model: Any,
    processor: Any,
    image: Image.Image,
    messages: Sequence[Message],
    *,
    layers: Sequence[int],
    max_new_tokens: int,
) -> tuple[list[WordHeat], list[View]]:
    """Returns the words that the model writes about an image with their heat, and the views to draw it over.

    Raises:
        As `write_and_watch`.
    """
    images = dict(processor.image_processor([image], return_tensors="pt"))
    words = explain_completion(
        model, processor.tokenizer, messages, images, layers=layers, max_new_tokens=max_new_tokens
    )
    return words, views_under(words, images, model, processor.image_processor.transform)


@torch.inference_mode()
def write_and_watch(
    model: Any,
    tokenizer: Any,
    messages: Sequence[Message],
    images: dict[str, Tensor],
    *,
    layers: Sequence[int],
    max_new_tokens: int,
) -> Written:
    """Generates an answer about one image greedily, and returns it with each layer's cross-attention weights.

    Weights on a perceiver's latents are mapped to encoder tokens by the attention of the perceiver's last layer.
    `images` are the image inputs of `forward`.

    Raises:
        ValueError: a layer has no cross-attention block.
        CheckpointError: the model's logits are not finite.
    """
    refuse_other_layers(model, layers)
    prompt = pad_left([encode_prompt(tokenizer, messages)], tokenizer.pad_token_id)
    prompt, images = ({name: value.to(model.device) for name, value in of.items()} for of in (prompt, images))
    written = write_greedily(model, tokenizer, prompt, images, max_new_tokens=max_new_tokens)
    ids = torch.cat([prompt["input_ids"], written], 1)
    (heat,) = watch(model, ids, written.shape[1], [read_image_tokens(model, images)], layers=layers)
    return Written(prompt["input_ids"].cpu(), written.cpu(), heat)


def refuse_other_layers(model: Any, layers: Sequence[int]) -> None:
    """Raises ValueError for a layer without a cross-attention block."""
    blocks = list(model.gate_openings())
    for layer in layers:
        if layer not in blocks:
            raise ValueError(f"layer {layer} has no cross-attention block; layers with one: {blocks}")


class ImageTokens(NamedTuple):
    """The states of one image that the decoder attends to."""

    states: Tensor
    """(P, D)."""
    of_latents: Tensor | None = None
    """(P, K) float32: attention of each perceiver latent over the K encoder tokens; None without a perceiver."""

    @property
    def num_encoder_tokens(self) -> int:
        return len(self.states) if self.of_latents is None else self.of_latents.shape[1]


@torch.inference_mode()
def read_image_tokens(model: Any, images: dict[str, Tensor]) -> ImageTokens:
    """Encodes one image, given as image inputs of `forward`, and records the attention of a perceiver's last layer."""
    of_latents: list[Tensor] = []
    projector = model.model.projector
    hooks = []
    if isinstance(projector, PerceiverResampler):
        reader: Any = projector.layers[-1]
        hooks.append(reader.register_forward_pre_hook(lambda _, args: of_latents.append(latent_weights(reader, *args))))
    try:
        states = model.model.encode_images(**images).states
    finally:
        for hook in hooks:
            hook.remove()
    return ImageTokens(states.flatten(0, -2), *of_latents)


@torch.inference_mode()
def watch(model: Any, ids: Tensor, count: int, images: Sequence[ImageTokens], *, layers: Sequence[int]) -> list[Tensor]:
    """Computes each layer's cross-attention weights for the last `count` of the (1, T) ids, in one forward pass.

    `images` are those of the `<image>` tokens, in order. Returns a (layers, count, encoder tokens) float32 tensor for
    each image that the end of the text attends to, which are the last ones; together their rows sum to 1.
    """
    heats: dict[int, Tensor] = {}

    def look(layer: int, attn: Any, states: Tensor, tokens: Tensor, segments: Any) -> None:
        # The last text run ends the row and attends to the last image run, or with a mask to all encoder tokens.
        # The weights at a token are those from which the next one is predicted.
        seen = tokens[-int(segments.key_runs.lengths[-1]) :] if isinstance(segments, SegmentTable) else tokens
        heats[layer] = mean_weights(attn, states.flatten(0, -2)[-count - 1 : -1], seen)

    hooks = [
        block.attn.register_forward_pre_hook(lambda attn, args, layer=layer: look(layer, attn, *args[:3]))
        for layer, block in ((layer, model.model.language_model.layers[layer].cross_block) for layer in layers)
    ]
    lengths = [len(image.states) for image in images]
    try:
        model(
            input_ids=ids,
            encoder_hidden_states=torch.cat([image.states for image in images]),
            encoder_lengths=torch.tensor(lengths, device=ids.device),
            logits_to_keep=1,
            use_cache=False,
        )
    finally:
        for hook in hooks:
            hook.remove()
    heat = torch.stack([heats[layer] for layer in layers])
    seen = next(number for number in range(1, len(images) + 1) if sum(lengths[-number:]) == heat.shape[-1])
    parts = zip(heat.split(lengths[-seen:], dim=-1), images[-seen:], strict=True)
    return [(part if image.of_latents is None else part @ image.of_latents).cpu() for part, image in parts]


def mean_weights(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """Returns (Q, K) float32 attention weights of one image group, the mean over heads; kernels do not return them."""
    query = attn.q_norm(attn._heads(attn.q_proj(hidden_states))).flatten(0, -3)
    key = attn.k_norm(attn._heads(attn.k_proj(encoder_hidden_states)))
    key = key.repeat_interleave(attn.num_key_value_groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * attn.scaling
    return scores.softmax(-1).mean(0)


def latent_weights(layer: PerceiverLayer, latents: Tensor, tokens: Tensor, lengths: Any) -> Tensor:
    """Returns (latents, K) float32: each latent's attention over the tokens of one image, in one perceiver layer."""
    query = layer.q_proj(layer.latent_norm(latents[0])).unflatten(-1, (layer.num_heads, -1)).float()
    key, _ = layer.kv_proj(layer.token_norm(tokens)).float().chunk(2, dim=-1)
    scores = torch.einsum("lhd,khd->hlk", query, key.unflatten(-1, (layer.num_heads, -1)))
    return (scores * query.shape[-1] ** -0.5).softmax(-1).mean(0)


def words_of(tokenizer: Any, ids: Sequence[int], heat: Tensor) -> list[WordHeat]:
    """Averages the heat, (tokens, encoder tokens), over the tokens of each word. Special tokens are left out."""
    return [WordHeat(word, heat[places].mean(0)) for word, places in word_places(tokenizer, ids)]


def word_places(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Returns each word with the positions of its tokens. Special tokens are left out."""
    groups: list[list[int]] = []
    for place, token in enumerate(ids):
        if token in tokenizer.all_special_ids:
            continue
        if not groups or decode_token(tokenizer, token)[:1].isspace():
            groups.append([])
        groups[-1].append(place)
    words = [(tokenizer.decode([ids[i] for i in places]).strip(), places) for places in groups]
    return [(word, places) for word, places in words if word]
