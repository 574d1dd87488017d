# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Generation with images: they go in with the first step and repeat with their rows; `<image>` is never written."""

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache
from transformers.generation.continuous_batching import PagedAttentionCache

from .encoder_checks import refuse_wrong_count
from .segments import image_positions

COUNTS = (
    "tiles_per_image",
    "encoder_lengths",
    "image_grids",
)  # an entry for each image: how much of the other inputs is its
IMAGE_INPUTS = (
    *("pixel_values", "image_features", "encoder_hidden_states", "encoder_attention_mask", "tile_ids"),
    *COUNTS,
)
IMAGE_INDEX = "image_index"  # which of the images each <image> stands for, where texts share them


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


def given_images(inputs: dict) -> dict[str, Tensor]:
    """The image inputs of a call, but for `image_index`; {} where they hold no image."""
    images = {key: inputs[key] for key in IMAGE_INPUTS if inputs.get(key) is not None}
    return images if images and len(next(iter(images.values()))) else {}


def order_of_images(images: dict[str, Tensor], index: Tensor | None) -> Tensor:
    """(I,) int64: the image that each `<image>` stands for, by the index of a call, or each its own."""
    if index is not None:
        return index
    counts = next((images[key] for key in COUNTS if key in images), next(iter(images.values())))
    return torch.arange(len(counts), device=counts.device)


class WithoutImageTokens(LogitsProcessor):
    """Keeps `<image>` from being written, since no image would stand for it."""

    supports_continuous_batching = True  # it reads no other row

    def __init__(self, image_token_id: int):
        self.image_token_id = image_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[..., self.image_token_id] = -torch.inf
        return scores


def _is_empty(cache: Cache | PagedAttentionCache | None) -> bool:
    """True for a growing cache without text; asking a static one would wait for the device in every step."""
    return isinstance(cache, Cache) and not cache.is_compileable and cache.get_seq_length() == 0


class CrossAttentionGenerationMixin(GenerationMixin):
    """Generation whose image inputs are lists of images, one for each `<image>`, not one for each row."""

    def prepare_inputs_for_generation(
        self, input_ids, *, inputs_embeds=None, is_first_iteration=False, use_cache=True, **kwargs
    ):
        """Drops the images after the first step over a cache, which then holds their keys.

        A conversation that continues over a cache may come with all its images or only with those of its new turns. An
        assistant model, for which transformers marks no first step, has images too while its cache is empty.
        transformers lets a model generate from `inputs_embeds` because they are a parameter here.
        """
        is_first_iteration = is_first_iteration or _is_empty(kwargs.get("cache"))
        if use_cache and not is_first_iteration:
            kwargs.update(dict.fromkeys(kwargs.keys() & {*IMAGE_INPUTS, IMAGE_INDEX}))
        elif use_cache and inputs_embeds is None:
            kwargs.update(self._images_behind_cache(input_ids, kwargs.get("next_sequence_length"), kwargs))
        return super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, use_cache=use_cache, **kwargs
        )

    def _images_behind_cache(self, input_ids: Tensor, new_tokens: int | None, inputs: dict) -> dict:
        """Changes to the image inputs where all images came and the cache holds some: only the others stay."""
        images = given_images(inputs)
        if new_tokens is None or new_tokens >= input_ids.shape[1] or not images:
            return {}
        text_config = self.config.get_text_config()
        is_image = image_positions(
            text_config, self.get_input_embeddings(), input_ids, None, inputs.get("attention_mask")
        )
        is_new = is_image.clone()
        is_new[:, :-new_tokens] = False
        index = order_of_images(images, inputs.get(IMAGE_INDEX)).to(is_image.device)
        if len(index) != int(is_image.sum()) or torch.equal(is_new, is_image):
            return {}
        order = index[is_new[is_image]]
        return (select_images(images, order) if len(order) else dict.fromkeys(images)) | {IMAGE_INDEX: None}

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeats rows for beams; the images of a row are encoded once and repeated with it, as a block."""
        images = given_images(model_kwargs)
        if expand_size > 1 and images:
            index = model_kwargs.get(IMAGE_INDEX)
            model_kwargs = {k: value for k, value in model_kwargs.items() if k not in (*IMAGE_INPUTS, IMAGE_INDEX)}
            if "encoder_hidden_states" not in images:
                images = self.model.encode_images(**images).decoder_inputs()
            embeds, mask = model_kwargs.get("inputs_embeds"), model_kwargs.get("attention_mask")
            of_text = (input_ids, None) if embeds is None else (None, embeds)
            is_image = image_positions(self.config.get_text_config(), self.get_input_embeddings(), *of_text, mask)
            index = order_of_images(images, index).to(is_image.device)
            cache = model_kwargs.get("cache")
            if cache is not None and len(index) < int(is_image.sum()):  # those of the new turns alone
                is_image = is_image[:, cache.get_seq_length() :]
            refuse_wrong_count(is_image, len(index))
            order = index.split(is_image.sum(1).tolist())
            images = select_images(images, torch.cat([row for row in order for _ in range(expand_size)]))
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | images

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        chunk = generation_config.prefill_chunk_size
        if chunk is not None and chunk < input_ids.shape[1] and given_images(model_kwargs):
            raise ValueError(
                "prefill_chunk_size splits a prompt, and its images would not be split with it; leave it out"
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        """transformers' list for these settings, with `<image>` forbidden whatever they are.

        It is forbidden first, so that top-k and top-p choose among the rest, and last, so that no other processor
        allows it again. Assistants and prompt lookup get the same list, so that no draft holds an `<image>` either.
        """
        processors = super()._get_logits_processor(*args, **kwargs)
        text_config = self.config.get_text_config()
        if not text_config.use_cross_attention:
            return processors
        forbid = WithoutImageTokens(text_config.image_token_id)
        return LogitsProcessorList([forbid, *processors, forbid])
