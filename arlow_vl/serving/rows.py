"""The key-value cache of all running rows, which rows join and leave between two tokens.

A new row's prompt is read into a cache of its own, which is then appended to that of the running rows. Texts end in the
last column, so the shorter ones get padding on their left, which the attention mask hides and positions do not count:

    running      a a a a a 1            a a a a a 1
    joins              b b        ->    . . . . b b       the next token of both goes into one more column

The images of the rows lie in the cache's cross-attention layers, padded on their right; a row without one has length 0
and passes those blocks untouched.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from arlow_vl.evaluation.likelihood import pad_left
from arlow_vl.models.arlow.cache_arlow import CrossAttentionCacheLayer
from arlow_vl.serving.assistant import PreparedImage

States = dict[PreparedImage, Tensor]
"""The (P, D) encoder tokens of each image, in the decoder's width."""


class Images(NamedTuple):
    """The cached keys and values of one cross-attention block for the images of B rows."""

    keys: Tensor
    """(B, P, Hkv, Dh), padded on the right."""
    values: Tensor
    lengths: Tensor
    """(B,) int64: the number of encoder tokens of each row."""


class ReadPrompts(NamedTuple):
    """Rows that are about to join."""

    cache: Cache
    mask: Tensor
    """(rows, T) int64, 1 on text."""
    logits: Tensor
    """(rows, V) float32, after the last token of each row."""


class Rows:
    """The cache of the running rows, in the order in which they joined."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self._model, self._pad = model, pad_token_id
        self._config = model.config.get_text_config()
        self._cache: Cache | None = None
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)  # (B, T), 1 on text

    def __len__(self) -> int:
        return len(self._mask)

    def read(
        self, prompts: Sequence[Sequence[int]], images: Sequence[Sequence[PreparedImage]], states: States
    ) -> ReadPrompts:
        """Reads prompts into a cache of their own; the running rows stay as they are, even if this fails."""
        device = self._model.device
        inputs = {name: x.to(device) for name, x in pad_left(prompts, self._pad).items()}
        cache = DynamicCache(config=self._config)
        logits = self._forward(inputs["input_ids"], inputs["attention_mask"], cache, _images(images, states))
        return ReadPrompts(cache, inputs["attention_mask"], logits)

    def join(self, read: ReadPrompts) -> None:
        """Appends rows that were read to the running rows."""
        if self._cache is None:
            self._cache, self._mask = read.cache, read.mask
            return
        columns = max(self._mask.shape[1], read.mask.shape[1])
        above, below = self._held_images(self._cache), self._held_images(read.cache)
        for ours, theirs in zip(self._text_layers(self._cache), self._text_layers(read.cache), strict=True):
            ours.keys = torch.cat([_pad_columns(x.keys, columns) for x in (ours, theirs)])
            ours.values = torch.cat([_pad_columns(x.values, columns) for x in (ours, theirs)])
        if above or below:
            room = max(layers[0].keys.shape[1] for layers in (above, below) if layers)
            above, below = (
                _pad_images(above, below, len(self._mask), room),
                _pad_images(below, above, len(read.mask), room),
            )
            joined = zip(above, below, strict=True)
            self._set_images([Images(*map(torch.cat, zip(*both, strict=True))) for both in joined])
        self._mask = torch.cat([F.pad(x, (columns - x.shape[1], 0)) for x in (self._mask, read.mask)])

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Reads one more token of each row and returns the (B, V) logits after it."""
        assert self._cache is not None
        self._mask = F.pad(self._mask, (0, 1), value=1)
        ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        return self._forward(ids, self._mask, self._cache, {})

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows, and padding that only they needed."""
        if not rows:
            self._cache, self._mask = None, self._mask[:0, :0]
            return
        if self._cache is None or len(rows) == len(self):
            return
        index = torch.tensor(rows, device=self._mask.device)
        self._mask = self._mask[index]
        unused = self._mask.shape[1] - int(self._mask.sum(1).max())
        self._mask = self._mask[:, unused:]
        for layer in self._text_layers(self._cache):
            layer.keys, layer.values = (x[index][:, :, unused:] for x in (layer.keys, layer.values))
        held = [Images(*(x[index] for x in images)) for images in self._held_images(self._cache)]
        room = int(held[0].lengths.max()) if held else 0
        self._set_images([Images(k[:, :room], v[:, :room], lengths) for k, v, lengths in held] if room else [])

    def _forward(self, ids: Tensor, mask: Tensor, cache: Cache, images: dict[str, Tensor]) -> Tensor:
        output = self._model(
            input_ids=ids, attention_mask=mask, cache=cache, use_cache=True, logits_to_keep=1, **images
        )
        return output.logits[:, -1].float()

    def _text_layers(self, cache: Any) -> list[Any]:
        return cache.layers[: self._config.num_hidden_layers]

    def _held_images(self, cache: Any) -> list[Images]:
        """Returns the images of each cross-attention block; empty if no row has an image."""
        layers = cache.layers[self._config.num_hidden_layers :]
        return [Images(layer.keys, layer.values, layer.lengths) for layer in layers if layer.is_initialized]

    def _set_images(self, held: Sequence[Images]) -> None:
        cache: Any = self._cache
        del cache.layers[self._config.num_hidden_layers :]
        for images in held:
            layer = CrossAttentionCacheLayer(cache.layers[0])
            layer.update(*images)
            cache.layers.append(layer)


def _pad_columns(states: Tensor, columns: int) -> Tensor:
    """(B, Hkv, T, Dh) with zeros before the text."""
    return F.pad(states, (0, 0, columns - states.shape[2], 0))


def _pad_images(held: list[Images], like: list[Images], rows: int, room: int) -> list[Images]:
    """Pads images to `room` encoder tokens per row; rows without images get zeros in the shape of `like`."""
    if not held:
        shape = rows, room, *like[0].keys.shape[2:]
        return [Images(x.keys.new_zeros(shape), x.values.new_zeros(shape), x.lengths.new_zeros(rows)) for x in like]
    return [Images(_pad_tokens(images.keys, room), _pad_tokens(images.values, room), images.lengths) for images in held]


def _pad_tokens(states: Tensor, room: int) -> Tensor:
    """(B, P, Hkv, Dh) with zeros after the encoder tokens."""
    return F.pad(states, (0, 0, 0, 0, 0, room - states.shape[1]))


def _images(of_rows: Sequence[Sequence[PreparedImage]], states: States) -> dict[str, Tensor]:
    """Returns the image inputs of prompts, each image once however many rows show it."""
    number: dict[PreparedImage, int] = {}
    index = [number.setdefault(image, len(number)) for images in of_rows for image in images]
    if not index:
        return {}
    tokens = [states[image] for image in number]
    device = tokens[0].device
    return {
        "encoder_hidden_states": torch.cat(tokens),
        "encoder_lengths": torch.tensor([len(x) for x in tokens], device=device),
        "image_index": torch.tensor(index, device=device),
    }
