# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""What a caller can get wrong about the decoder's inputs, each refused in a sentence that says what to do.

Shapes and names are always looked at; ids are looked at on a CPU, and on CUDA by an assertion that runs with the
kernels, so that nothing waits. Under `torch.compile` nothing is checked: the graph stays whole.
"""

import difflib
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import TransformersKwargs

from .configuration_arlow import ArlowConfig
from .generation_arlow import CrossAttentionCacheLayer
from .loss import IGNORED

ARGUMENTS = frozenset(
    """
    input_ids attention_mask position_ids past_key_values cache inputs_embeds labels use_cache logits_to_keep
    skip_logits encoder_hidden_states encoder_attention_mask encoder_lengths segments pixel_values image_features
    tiles_per_image tile_ids image_grids
    """.split()
)
KEYWORDS = frozenset(TransformersKwargs.__annotations__) | frozenset(
    """
    shift_labels ignore_index return_dict debug_io debug_io_dir prune_layers
    write_index read_index logits_indices block_table logits_processor_args
    tokenizer assistant_tokenizer
    """.split()  # the loss's; transformers' own wrappers'; continuous batching's; generate's, which hands them on
)
# Any other implementation is the caller's own, registered with transformers: it may read keywords that we don't know.
OUR_ATTENTION = ("arlow", "eager", "sdpa", "flex_attention", "flash_attention", "paged|")


def refuse_wrong_inputs(
    config: ArlowConfig,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    encoder_hidden_states: Tensor | None,
    encoder_attention_mask: Tensor | None,
    keywords: dict[str, Any],
) -> None:
    """Whether a call of the decoder has the right things in the right shapes.

    Raises:
        TypeError: a keyword that nobody reads, with the closest argument.
        ValueError: ids or embeddings or images that this model cannot take.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if torch.compiler.is_compiling():
        return
    if not keywords.keys() <= KEYWORDS and config._attn_implementation.startswith(OUR_ATTENTION):
        name = min(keywords.keys() - KEYWORDS)
        close = difflib.get_close_matches(name, (ARGUMENTS | KEYWORDS) - {name}, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(sorted(ARGUMENTS))}"
        raise TypeError(f"Arlow's forward takes no argument {name!r}; {hint}")
    if inputs_embeds is None:
        _refuse_wrong_ids(input_ids, config.vocab_size)
    else:
        _refuse_wrong_embeddings(inputs_embeds, config.hidden_size)
    if encoder_hidden_states is not None or encoder_attention_mask is not None:
        _refuse_wrong_images(encoder_hidden_states, encoder_attention_mask, config.hidden_size)


def _refuse_wrong_embeddings(inputs_embeds: Tensor, hidden_size: int) -> None:
    if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != hidden_size:
        raise ValueError(
            f"inputs_embeds must be (batch, text, hidden_size {hidden_size}), got {_shape(inputs_embeds)}; "
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
        raise ValueError(f"input_ids must be (batch, text), got {_shape(input_ids)}{hint}")
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


def refuse_wrong_layout(
    model, inputs_embeds: Tensor, attention_mask: Any, position_ids: Tensor | None, cache: Cache | None
) -> None:
    """Raises ValueError unless mask, positions and cache belong to this text and this model."""
    if torch.compiler.is_compiling():
        return
    batch, width = inputs_embeds.shape[:2]
    past = 0
    if cache is not None:
        _refuse_foreign_cache(model, cache, batch)
        holds_length = isinstance(cache, Cache) and not cache.is_compileable
        past = cache.get_seq_length() if holds_length else None
    if isinstance(attention_mask, Tensor):
        _refuse_wrong_mask(attention_mask, batch, width, past)
    if position_ids is not None and tuple(position_ids.shape) not in ((batch, width), (1, width)):
        raise ValueError(
            f"position_ids must be {(batch, width)} as the text is, got {_shape(position_ids)}; "
            "leave them out to have them counted from attention_mask"
        )


def _refuse_wrong_mask(mask: Tensor, batch: int, width: int, past: int | None) -> None:
    """`past` None: how much a static cache holds is not known without waiting for the device."""
    if mask.ndim == 4 and mask.shape[0] in (1, batch) and mask.shape[2] == width:
        return
    length_fits = mask.shape[-1] >= width if past is None else mask.shape[-1] == past + width
    if mask.ndim == 2 and mask.shape[0] == batch and length_fits:
        return
    expected = f"({batch}, {width} of text)" if not past else f"({batch}, {past} in the cache + {width} of text)"
    raise ValueError(
        f"attention_mask must be {expected}, got {_shape(mask)}; it marks the text in the cache as well as the new text"
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
        return  # grows with the first call
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


def _refuse_wrong_images(states: Tensor | None, mask: Tensor | None, hidden_size: int) -> None:
    if states is None:
        raise ValueError("encoder_attention_mask came without encoder_hidden_states; give both or neither")
    if states.ndim not in (2, 3) or states.shape[-1] != hidden_size or not states.is_floating_point():
        raise ValueError(
            f"encoder_hidden_states must be floating point (images, encoder tokens, hidden_size {hidden_size}), or "
            f"flat (encoder tokens, {hidden_size}) with encoder_lengths, got {states.dtype} {_shape(states)}; "
            "project them to the decoder's width first"
        )
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(
            f"encoder_attention_mask must be {_shape(states)[:2]} as encoder_hidden_states are, got {_shape(mask)}"
        )
    if type(states) is Tensor and states.is_cuda:
        torch._assert_async(states.isfinite().all(), "encoder_hidden_states hold NaN or infinity")
    elif type(states) is Tensor and states.device.type == "cpu" and not states.isfinite().all():
        whole = states.isfinite().flatten(1).all(1)
        number = whole.logical_not().nonzero()[0].item()
        name = "image" if states.ndim == 3 else "encoder token"
        raise ValueError(f"encoder_hidden_states hold NaN or infinity in {name} {number}; check image and weights")


def refuse_missing_images(config: ArlowConfig, input_ids: Tensor | None, cache: Cache | None) -> None:
    """For a call without images: raises ValueError where the text asks for one. On CUDA nobody waits to look."""
    if input_ids is None or torch.compiler.is_compiling() or type(input_ids) is not Tensor or input_ids.is_cuda:
        return
    if isinstance(cache, Cache):
        holds_images = any(isinstance(layer, CrossAttentionCacheLayer) for layer in cache.layers)
        if holds_images or (input_ids.shape[1] == 1 and cache.get_seq_length() > 0):
            return
    if count := int((input_ids == config.image_token_id).sum()):
        raise ValueError(
            f"the text holds {count} <image> (id {config.image_token_id}) but no images came; give pixel_values, "
            "which ArlowProcessor makes of images, or take <image> out of the text"
        )


def refuse_wrong_labels(config: ArlowConfig, labels: Tensor | None, text: Tensor | None, logits_to_keep: Any) -> None:
    """`text` is input_ids or inputs_embeds. Raises ValueError unless each position of it has an id or -100."""
    if labels is None or text is None or torch.compiler.is_compiling():
        return
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 token ids, got {labels.dtype}; convert them with labels.long()")
    keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
    if keeps_all and labels.shape != text.shape[:2]:
        raise ValueError(
            f"labels must be {tuple(text.shape[:2])} as the text is, got {_shape(labels)}; they are shifted inside, "
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


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
