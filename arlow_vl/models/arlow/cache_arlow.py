# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The images in a transformers Cache: one layer more for each cross-attention block, behind the decoder's own layers.

They live in the same Cache as the text, so that whatever is done to it (beams reorder it, generation crops it, a prompt
is copied) is done to both. A cache that never meets an image stays as it was made.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.generation.continuous_batching import PagedAttentionCache

from .configuration_arlow import ArlowConfig

NO_IMAGE = -1
OF_ROWS = ("keys", "values", "lengths", "images", "image_starts", "image_ends")


class CrossAttentionCacheLayer(CacheLayerMixin):
    """The keys and values of the images that each row still sees: (B, P, Hkv, Dh), and its (B,) lengths.

    Under 'last_group' those are of one group of images a row, under 'all_previous' of all images of the row.
    """

    supports_early_init = False
    is_compileable = True  # of fixed shape until another image comes
    is_croppable = True
    is_sliding = False
    lengths: Tensor | None = None
    images: Tensor | None = None
    """(B,) int64, under 'all_previous': images so far in each row's document, which is the next one's number."""
    image_starts: Tensor | None = None
    """(B,) int64: the column of each row's first `<image>`, NO_IMAGE where it has none. Columns count all the text."""
    image_ends: Tensor | None = None
    """(B,) int64: the column behind each row's last `<image>`."""
    is_cut = False
    """True after a crop to between two images of a row, of which only the later is held."""

    def __init__(self, text_layer: CacheLayerMixin):
        """`text_layer` is the decoder's first: it knows how much text the cache holds."""
        super().__init__()
        self.text_layer = text_layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, lengths: Tensor, images: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Replaces what the layer holds; rows that keep their images pass them again."""
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values, self.lengths, self.images = key_states, value_states, lengths, images
        return key_states, value_states

    def take_turn(self, is_image: Tensor, past: int) -> None:
        """Records where the images of a call stand, (B, T) bool behind `past` columns of text."""
        if self.image_starts is None:
            self.image_starts = self.image_ends = torch.full_like(is_image[:, 0], NO_IMAGE, dtype=torch.long)
        has_image = is_image.any(1)
        starts = past + is_image.int().argmax(1)
        ends = past + is_image.shape[1] - is_image.flip(1).int().argmax(1)
        self.image_starts = torch.where(has_image & (self.image_starts == NO_IMAGE), starts, self.image_starts)
        self.image_ends = torch.where(has_image, ends, self.image_ends)

    def crop(self, tokens_to_remove: int) -> None:
        """Follows a crop of the text layers in front, which have been cropped already.

        A row that now ends before its first image sees none again; one that still ends behind its last image sees what
        it saw. In between it would see an image that is no longer held: the next call is refused (`input_checks`).
        """
        if not tokens_to_remove or self.image_starts is None:
            return
        length = int(self.text_layer.get_seq_length())
        is_before = self.image_starts >= length
        self.is_cut = bool((~is_before & (self.image_ends > length)).any())
        self.image_starts, self.image_ends = (
            x.masked_fill(is_before, NO_IMAGE) for x in (self.image_starts, self.image_ends)
        )
        if self.is_initialized:
            self.lengths = self.lengths.masked_fill(is_before, 0)
            self.images = None if self.images is None else self.images.masked_fill(is_before, 0)

    def reset(self) -> None:
        for name in OF_ROWS:
            setattr(self, name, None)
        self.is_initialized = self.is_cut = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.image_starts is not None or self.is_initialized:
            rows = self.image_starts if self.lengths is None else self.lengths
            self.batch_select_indices(torch.arange(len(rows), device=rows.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        for name in OF_ROWS:
            rows = getattr(self, name)
            if rows is not None:
                setattr(self, name, rows[indices.to(rows.device)])

    def prefetch(self) -> None:
        """Prefetches the first text layer, the next one needed where text layers are offloaded; this layer stays."""
        self.text_layer.prefetch()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        """Encoder tokens that each row has room for: the number that the longest row holds."""
        return self.keys.shape[1] if self.is_initialized else 0

    def get_max_length(self) -> int:
        return -1


def cross_attention_caches(
    cache: Cache | PagedAttentionCache | None, config: ArlowConfig, *, images_come: bool
) -> list[CrossAttentionCacheLayer]:
    """The cache layers of the cross-attention blocks; the first call with images adds them behind the decoder's own.

    Empty for continuous batching, whose pages hold text alone.
    """
    if not isinstance(cache, Cache):
        return []
    found = [layer for layer in cache.layers if isinstance(layer, CrossAttentionCacheLayer)]
    if images_come and not found:
        # A DynamicCache made without a config grows layer by layer; ours must not take the place of a text layer.
        while len(cache.layers) < config.num_hidden_layers and cache.layer_class_to_replicate is not None:
            cache.layers.append(cache.layer_class_to_replicate())
        found = [CrossAttentionCacheLayer(cache.layers[0]) for _ in config.cross_attention_layers]
        cache.layers.extend(found)
    return found
