# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""What cached generation needs beyond text: the images' keys in the cache, the images in the first step only."""

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.generation.continuous_batching import PagedAttentionCache

from .configuration_arlow import ArlowConfig

COUNTS = ("tiles_per_image", "encoder_lengths", "image_grids")  # one row for each image: how much of the rest is its
IMAGE_INPUTS = (
    *("pixel_values", "image_features", "encoder_hidden_states", "encoder_attention_mask", "tile_ids"),
    *COUNTS,
)


class CrossAttentionCacheLayer(CacheLayerMixin):
    """The keys and values of the one image group that each row still sees: (B, P, Hkv, Dh), and its (B,) lengths.

    It stands behind the decoder's own layers in the same transformers Cache, so beam search reorders it with them.
    """

    supports_early_init = False
    is_compileable = True  # of fixed shape until another image comes
    is_croppable = True
    is_sliding = False
    text_end = 0
    """Where in the text the last call with images ended."""
    ends_with_image: Tensor | None = None
    """(B,) bool: the rows whose text ended with `<image>` there."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Replaces what the layer holds; rows that keep their group hand it in again."""
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values, self.lengths = key_states, value_states, lengths
        return key_states, value_states

    def forget(self) -> None:
        """The last images had no tokens: nothing is seen behind them."""
        if self.is_initialized:
            self.lengths = torch.zeros_like(self.lengths)

    def take_turn(self, is_image: Tensor, is_text: Tensor, past: int) -> None:
        """Text that comes with images behind `past` tokens; both are (B, T) bool.

        Raises:
            ValueError: a group of consecutive images would be parted, of which no token sees the whole.
        """
        rows = torch.arange(len(is_text), device=is_text.device)
        first, last = is_text.int().argmax(1), is_text.shape[1] - 1 - is_text.flip(1).int().argmax(1)
        if past and past == self.text_end and self.ends_with_image is not None:
            parted = self.ends_with_image & is_image[rows, first]
            if bool(parted.any()):
                raise ValueError(
                    f"row {parted.int().argmax().item()} begins with <image> and the text in the cache ends with one: "
                    "images that follow each other are one group, so give their <image>s in one call"
                )
        self.text_end, self.ends_with_image = past + is_text.shape[1], is_image[rows, last]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        return self.keys.shape[1] if self.is_initialized else 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.keys = self.values = self.lengths = self.ends_with_image = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Images stay: only text behind them is ever taken back."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            rows = torch.arange(self.keys.shape[0], device=self.keys.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            indices = indices.to(self.keys.device)
            self.keys, self.values, self.lengths = (x[indices] for x in (self.keys, self.values, self.lengths))
        if self.ends_with_image is not None:
            self.ends_with_image = self.ends_with_image[indices.to(self.ends_with_image.device)]


def cross_attention_caches(
    cache: Cache | PagedAttentionCache | None, config: ArlowConfig, *, images_come: bool
) -> list[CrossAttentionCacheLayer]:
    """The cache layers of the cross-attention blocks, put behind the decoder's own by the first images.

    A cache that never meets one stays as it was made. Continuous batching hands in pages instead of a Cache, which hold
    text alone.
    """
    if not isinstance(cache, Cache):
        return []
    found = [layer for layer in cache.layers if isinstance(layer, CrossAttentionCacheLayer)]
    if images_come and not found:
        found = [CrossAttentionCacheLayer() for _ in config.cross_attention_layers]
        cache.layers.extend(found)
    return found


def image_positions(
    config: ArlowConfig, embed_tokens, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> Tensor:
    """(B, T) bool, True on `<image>` tokens; where embeddings came alone, on those that are the one of `<image>`."""
    if input_ids is not None:
        return input_ids == config.image_token_id
    assert inputs_embeds is not None
    image = embed_tokens(torch.tensor([config.image_token_id], device=inputs_embeds.device))
    return (inputs_embeds == image).all(-1)


def select_images(images: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The image inputs of some of the images, in that order, with their tiles, patches or encoder tokens."""
    counts = next((images[key] for key in COUNTS if key in images), None)
    if counts is None:
        return {key: value[order] for key, value in images.items()}
    lengths = (counts.prod(-1) if counts.ndim == 2 else counts).tolist()
    selected = {key: value[order] for key, value in images.items() if key in COUNTS}
    for key in images.keys() - selected.keys():
        of_image = images[key].split(lengths)
        chosen = [of_image[number] for number in order.tolist()]
        selected[key] = torch.cat(chosen) if chosen else images[key][:0]
    return selected


def _is_empty(cache: Cache | PagedAttentionCache | None) -> bool:
    """Of a cache that grows; asking a static one would wait for the device in every step."""
    return isinstance(cache, Cache) and not cache.is_compileable and cache.get_seq_length() == 0


class CrossAttentionGenerationMixin(GenerationMixin):
    """Generation whose image inputs are lists of images, one for each `<image>`, not one for each row."""

    def prepare_inputs_for_generation(
        self, input_ids, *, inputs_embeds=None, is_first_iteration=False, use_cache=True, **kwargs
    ):
        """After the first step over a cache the images' keys are in it, and nothing is projected again.

        A conversation that goes on over a cache may come with all its images or only with those of its new turns. An
        assistant model, for which transformers knows no first step, has images too while its cache is empty.
        transformers lets a model generate from `inputs_embeds` where it finds them named here.
        """
        is_first_iteration = is_first_iteration or _is_empty(kwargs.get("cache"))
        if use_cache and not is_first_iteration:
            kwargs.update(dict.fromkeys(kwargs.keys() & set(IMAGE_INPUTS)))
        elif use_cache and inputs_embeds is None:
            kwargs.update(self._images_behind_cache(input_ids, kwargs.get("next_sequence_length"), kwargs))
        return super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, use_cache=use_cache, **kwargs
        )

    def _images_behind_cache(self, input_ids: Tensor, new_tokens: int | None, inputs: dict) -> dict:
        """What to change in the image inputs where some `<image>`s are in the cache and all images came."""
        images = {key: inputs[key] for key in IMAGE_INPUTS if inputs.get(key) is not None}
        if new_tokens is None or new_tokens >= input_ids.shape[1] or not images:
            return {}
        is_image = input_ids == self.config.get_text_config().image_token_id
        is_new = is_image.clone()
        is_new[:, :-new_tokens] = False
        count = len(next((images[key] for key in COUNTS if key in images), next(iter(images.values()))))
        if count != int(is_image.sum()) or torch.equal(is_new, is_image):
            return {}
        order = is_new[is_image].nonzero()[:, 0]
        return select_images(images, order) if len(order) else dict.fromkeys(images)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Beams repeat rows; the images of a row are encoded once and repeated with it, as a block."""
        images = {key: model_kwargs.pop(key) for key in IMAGE_INPUTS if model_kwargs.get(key) is not None}
        if expand_size > 1 and images:
            if "encoder_hidden_states" not in images:
                images = self.model.encode_images(**images).decoder_inputs()
            embeds = model_kwargs.get("inputs_embeds")
            is_image = image_positions(
                self.config.get_text_config(),
                self.get_input_embeddings(),
                input_ids if embeds is None else None,
                embeds,
            )
            per_row = is_image.sum(1)
            order = torch.arange(int(per_row.sum()), device=is_image.device).split(per_row.tolist())
            images = select_images(images, torch.cat([row for row in order for _ in range(expand_size)]))
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | images
