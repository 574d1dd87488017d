# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Checks of what a caller can get wrong about the decoder's inputs, each refused in a sentence that says what to do.

`refuse_wrong_call` checks a whole call before anything is computed, `refuse_wrong_turn` its images once their places in
the text are known. Shapes and names are always checked; ids are checked on a CPU, and on CUDA by an assertion that runs
with the kernels, so that nothing waits. Under `torch.compile` nothing is checked, which would break the graph.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import TransformersKwargs

from .cache_arlow import CrossAttentionCacheLayer
from .configuration_arlow import ArlowConfig
from .encoder_checks import Images, refuse_wrong_count, refuse_wrong_images, shape_of
from .loss import IGNORED
from .spelling import closest, number_of

CLOSE = 0.8
"""Likeness (of 1) from which a name is taken for a misspelt one: "lables" has 0.83, "cache_position" 0.69."""


class Text(NamedTuple):
    """The text of a call as it came in; the mask covers what a cache holds as well."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    attention_mask: Any
    position_ids: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of this call."""
        batch, width = (self.inputs_embeds if self.input_ids is None else self.input_ids).shape[:2]
        return batch, width

    @property
    def mask(self) -> Tensor | None:
        """(B, T) nonzero on text; None where all is text, or where a mask of four axes stands in for it."""
        if not isinstance(self.attention_mask, Tensor) or self.attention_mask.ndim != 2:
            return None
        return self.attention_mask[:, -self.shape[1] :]


def refuse_wrong_call(model, text: Text, images: Images, cache: Cache | None) -> None:
    """Checks a call of `ArlowModel` before anything is computed.

    Raises:
        ValueError: text, images, mask, positions or cache that this model cannot take, or that do not go together.
    """
    if (text.input_ids is None) == (text.inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if torch.compiler.is_compiling():
        return
    config: ArlowConfig = model.config
    if text.inputs_embeds is None:
        _refuse_wrong_ids(text.input_ids, config.vocab_size)
    else:
        _refuse_wrong_embeddings(text.inputs_embeds, config.hidden_size)
    if any(given is not None for given in images):
        refuse_wrong_images(config, *images)
    _refuse_wrong_context(model, text, cache)


def refuse_misspelt(forward: Callable, keywords: Iterable[str]) -> None:
    """Raises TypeError for a keyword that is nearly a parameter of `forward` and would be ignored.

    Any other is passed on: transformers, or an attention function of the caller's own, may read it.
    """
    if not keywords or torch.compiler.is_compiling():
        return
    known = _parameters(getattr(forward, "__func__", forward))
    for name in sorted(set(keywords) - known):
        if close := closest(name, sorted(known), cutoff=CLOSE):
            raise TypeError(f"Arlow's forward takes no argument {name!r}; did you mean {close}?")


@functools.cache
def _parameters(forward: Callable) -> frozenset[str]:
    """The names that `forward` takes, and those that transformers' models pass to each other."""
    return frozenset(inspect.signature(forward).parameters) | frozenset(TransformersKwargs.__annotations__)


def refuse_wrong_turn(
    is_image: Tensor,
    image_count: int,
    text: Text,
    past: int,
    cross_cache: CrossAttentionCacheLayer | None,
) -> None:
    """Checks the images of a call by their places, (B, T) bool, in its text behind `past` columns of a cache.

    Raises:
        ValueError: another number of images than `<image>`s, or a group of images of which a part is in the cache.
    """
    if text.input_ids is None and (found := int(is_image.sum())) != image_count:
        raise ValueError(
            f"{number_of(image_count, 'image')} came, placed by the <image> tokens of the text, and {found} of "
            "inputs_embeds are the embedding of <image>; where embeddings were changed with inputs_embeds give "
            "segments (SegmentTable.of_pairs)"
        )
    refuse_wrong_count(is_image, image_count)
    if past and cross_cache is not None and cross_cache.image_ends is not None:
        _refuse_split_groups(is_image, text.attention_mask, past, cross_cache.image_ends)


def _refuse_split_groups(is_image: Tensor, mask: Any, past: int, image_ends: Tensor) -> None:
    """Refuses a group of images that is split between cache and call: its last token must see all of it."""
    batch, width = is_image.shape
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        mask = is_image.new_ones(batch, past + width)
    mask = mask.bool()
    columns = torch.arange(past, device=mask.device)
    words_between = (mask[:, :past] & (columns >= image_ends[:, None])).any(1)
    begins_with_image = is_image.gather(1, mask[:, past : past + width].int().argmax(1, keepdim=True))[:, 0]
    is_split = (image_ends >= 0) & ~words_between & begins_with_image
    if bool(is_split.any()):
        raise ValueError(
            f"row {is_split.int().argmax().item()} begins with <image> and the text in the cache ends with one: "
            "images that follow each other are one group, so give their <image>s in one call"
        )


def refuse_packing_for_flash(text: Text, past: Any, implementation: str) -> None:
    """Raises ValueError for a call with documents and padding: transformers' flash attention takes only one of them."""
    if text.attention_mask is not None or (isinstance(past, int) and past):
        raise ValueError(
            f"position_ids restart inside a row, and attn_implementation {implementation!r} cannot part documents "
            "beside an attention_mask or behind a cache; leave those out, or take 'arlow', 'sdpa' or 'eager'"
        )


def _refuse_wrong_embeddings(inputs_embeds: Tensor, hidden_size: int) -> None:
    if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != hidden_size:
        raise ValueError(
            f"inputs_embeds must be (batch, text, hidden_size {hidden_size}), got {shape_of(inputs_embeds)}; "
            "take them from model.get_input_embeddings()"
        )
    if not inputs_embeds.is_floating_point():
        raise ValueError(f"inputs_embeds must be floating point, got {inputs_embeds.dtype}; ids go in as input_ids")


def _refuse_wrong_ids(input_ids: Tensor, vocab_size: int) -> None:
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"input_ids must be int64 token ids, got {input_ids.dtype}; convert them with input_ids.long()"
        )
    if input_ids.ndim != 2:
        hint = "; add the batch axis with input_ids[None]" if input_ids.ndim == 1 else ""
        raise ValueError(f"input_ids must be (batch, text), got {shape_of(input_ids)}{hint}")
    _refuse_ids_outside(input_ids, vocab_size)


def _refuse_ids_outside(input_ids: Tensor, vocab_size: int) -> None:
    if type(input_ids) is not Tensor or not input_ids.numel():
        return  # a fake or distributed tensor holds no values here
    if input_ids.device.type == "cpu":
        low, high = (int(bound) for bound in input_ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"input_ids holds {low if low < 0 else high}, but the vocabulary has ids 0 to {vocab_size - 1}; "
                "use the tokenizer that the model was trained with, or model.resize_token_embeddings"
            )
    elif input_ids.is_cuda:
        inside = (input_ids.clamp(0, vocab_size - 1) == input_ids).all()
        torch._assert_async(inside, f"input_ids holds an id outside the vocabulary, 0 to {vocab_size - 1}")


def _refuse_wrong_context(model, text: Text, cache: Cache | None) -> None:
    """Refuses a mask, positions or a cache that do not belong to this text and this model."""
    batch, width = text.shape
    past = 0
    if cache is not None:
        _refuse_foreign_cache(model, cache, batch)
        holds_length = isinstance(cache, Cache) and not cache.is_compileable
        past = cache.get_seq_length() if holds_length else None
        _refuse_useless_cache(model, cache)
    if isinstance(text.attention_mask, Tensor):
        _refuse_wrong_mask(text.attention_mask, batch, width, past)
    positions = text.position_ids
    if positions is not None and tuple(positions.shape) not in ((batch, width), (1, width)):
        raise ValueError(
            f"position_ids must be {(batch, width)} as the text is, got {shape_of(positions)}; "
            "leave them out to have them counted from attention_mask"
        )


def _refuse_useless_cache(model, cache: Cache) -> None:
    if not isinstance(cache, Cache):
        return
    if any(isinstance(layer, CrossAttentionCacheLayer) and layer.is_cut for layer in cache.layers):
        raise ValueError(
            "the cache was cropped to between two images of a row, of which it holds only the later; crop it to in "
            "front of the row's first image, or start a new one"
        )
    if model.recomputes_layers and cache.get_seq_length() > 0:
        raise ValueError(
            "gradient checkpointing computes layers twice and cannot read the text in the cache; leave the cache out, "
            "or call model.gradient_checkpointing_disable()"
        )


def _refuse_wrong_mask(mask: Tensor, batch: int, width: int, past: int | None) -> None:
    """Refuses a mask of another shape. `past` None: a static cache does not tell its length without a sync."""
    if mask.ndim == 4 and mask.shape[0] in (1, batch) and mask.shape[2] == width:
        return
    length_fits = mask.shape[-1] >= width if past is None else mask.shape[-1] == past + width
    if mask.ndim == 2 and mask.shape[0] == batch and length_fits:
        return
    expected = f"({batch}, {width} of text)" if not past else f"({batch}, {past} in the cache + {width} of text)"
    raise ValueError(
        f"attention_mask must be {expected}, got {shape_of(mask)}; it marks the text in the cache as well as "
        "the new text"
    )


def _refuse_foreign_cache(model, cache: Cache, batch: int) -> None:
    config: ArlowConfig = model.config
    if isinstance(cache, (tuple, list, dict)):
        raise ValueError(
            f"the cache must be a transformers Cache, got a {type(cache).__name__}; "
            "give DynamicCache(config=model.config) or what an earlier call returned"
        )
    if not isinstance(cache, Cache):
        return  # the paged one of continuous batching
    own = [layer for layer in cache.layers if not isinstance(layer, CrossAttentionCacheLayer)]
    if not own:
        return  # it grows with the first call
    if len(own) != config.num_hidden_layers:
        raise ValueError(
            f"the cache has {len(own)} layers and this model {config.num_hidden_layers}; "
            "it was made for another model: give a cache that this one filled, or none"
        )
    keys = getattr(own[0], "keys", None)
    if keys is None or keys.ndim != 4:
        return
    # A sharded model's cache holds the heads of its own rank; only the outermost model knows how many those are.
    is_sharded = hasattr(getattr(model.layers[0].self_attn.k_proj, "weight", None), "device_mesh")
    heads = keys.shape[1] if is_sharded else config.num_key_value_heads
    expected, found = (batch, heads, config.head_dim), (keys.shape[0], keys.shape[1], keys.shape[3])
    if found != expected:
        raise ValueError(
            "the cache holds (rows, key-value heads, head_dim) "
            f"{found} and this call has {expected}; give a cache that this model filled for these rows, or none"
        )


def refuse_wrong_layout(layout, text: Text, images: Images, cache: Any, segments: Any) -> None:
    """Raises ValueError unless a `BatchLayout` is of this call, as far as shapes tell."""
    if cache is not None:
        raise ValueError("layout is of whole rows, in front of which a cache holds nothing; give use_cache=False")
    if segments is not None or text.attention_mask is not None or text.position_ids is None:
        raise ValueError("layout stands in for attention_mask and segments; give it and the position_ids it is made of")
    if torch.compiler.is_compiling():
        return
    states, mask = images.encoder_hidden_states, images.encoder_attention_mask
    if mask is not None:
        raise ValueError("layout goes with encoder_hidden_states without a mask; give those that count flat")
    found = 0 if states is None else states.shape[:-1].numel()
    if tuple(layout.documents.shape) != text.shape or layout.encoder_tokens != found:
        raise ValueError(
            f"layout is of {shape_of(layout.documents)} tokens with {layout.encoder_tokens} encoder tokens, and "
            f"{text.shape} with {found} came; make it with BatchLayout.of_batch of the same batch"
        )


def refuse_wrong_labels(config: ArlowConfig, labels: Tensor | None, text: Tensor | None, logits_to_keep: Any) -> None:
    """Raises ValueError unless labels have an id or -100 for each position of `text`, input_ids or inputs_embeds."""
    if labels is None or text is None or torch.compiler.is_compiling():
        return
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 token ids, got {labels.dtype}; convert them with labels.long()")
    keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
    if keeps_all and labels.shape != text.shape[:2]:
        raise ValueError(
            f"labels must be {tuple(text.shape[:2])} as the text is, got {shape_of(labels)}; they are shifted inside, "
            f"and {IGNORED} stands where nothing is to be predicted"
        )
    if type(labels) is not Tensor:
        return
    if labels.device.type == "cpu" or labels.is_cuda:
        vocab_size = config.vocab_size
        outside = (labels != IGNORED) & (labels.clamp(0, vocab_size - 1) != labels)
        if labels.is_cuda:
            torch._assert_async(
                ~outside.any(), f"labels hold an id outside 0 to {vocab_size - 1} that is not {IGNORED}"
            )
        elif outside.any():
            raise ValueError(
                f"labels hold {labels[outside][0].item()}, but the vocabulary has ids 0 to {vocab_size - 1}; "
                f"use {IGNORED} where nothing is to be predicted"
            )
