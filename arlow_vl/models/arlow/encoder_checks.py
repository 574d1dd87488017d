# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Checks of a call's encoder tokens: shapes, counts and values. Those of its text are in `input_checks`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .cache_arlow import CrossAttentionCacheLayer
from .configuration_arlow import ArlowConfig
from .spelling import number_of


class Images(NamedTuple):
    """The images of a call as they came in, (M, P, D) with an (M, P) mask or flat (K, D) with (M,) lengths.

    The (N,) index says which of them each `<image>` stands for; None: each for its own.
    """

    encoder_hidden_states: Tensor | None
    encoder_attention_mask: Tensor | None
    encoder_lengths: Tensor | None
    image_index: Tensor | None

    @property
    def come(self) -> bool:
        return self.encoder_hidden_states is not None and len(self.encoder_hidden_states) > 0


def refuse_wrong_images(
    config: ArlowConfig, states: Tensor | None, mask: Tensor | None, lengths: Tensor | None, index: Tensor | None
) -> None:
    """Raises ValueError unless the images of a call, of which one part at least is given, have a form of `Images`."""
    hidden_size = config.hidden_size
    if states is None:
        rest = {"encoder_attention_mask": mask, "encoder_lengths": lengths, "image_index": index}
        name = next(name for name, given in rest.items() if given is not None)
        raise ValueError(f"{name} came without encoder_hidden_states; give both or neither")
    if not config.use_cross_attention:
        raise ValueError("this model was built with use_cross_attention False and cannot take encoder_hidden_states")
    if states.ndim not in (2, 3) or states.shape[-1] != hidden_size or not states.is_floating_point():
        raise ValueError(
            f"encoder_hidden_states must be floating point (images, encoder tokens, hidden_size {hidden_size}), or "
            f"flat (encoder tokens, {hidden_size}) with encoder_lengths, got {states.dtype} {shape_of(states)}; "
            "project them to the decoder's width first"
        )
    if (lengths is not None) != (states.ndim == 2) or (lengths is not None and mask is not None):
        raise ValueError(
            f"encoder_lengths goes with flat (encoder tokens, {hidden_size}) encoder_hidden_states and no mask, and "
            f"only with them, got {shape_of(states)}"
        )
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(
            f"encoder_attention_mask must be {shape_of(states)[:2]} as encoder_hidden_states are, got {shape_of(mask)}"
        )
    if type(states) is Tensor and states.is_cuda:
        torch._assert_async(states.isfinite().all(), "encoder_hidden_states hold NaN or infinity")
    elif type(states) is Tensor and states.device.type == "cpu" and not states.isfinite().all():
        whole = states.isfinite().flatten(1).all(1)
        number = whole.logical_not().nonzero()[0].item()
        name = "image" if states.ndim == 3 else "encoder token"
        raise ValueError(f"encoder_hidden_states hold NaN or infinity in {name} {number}; check image and weights")


def refuse_wrong_lengths(lengths: Tensor, count: int) -> None:
    """Raises ValueError unless (N,) lengths of images are positive and add up to `count` flat encoder tokens."""
    if type(lengths) is Tensor and lengths.is_cuda:
        fits = (lengths.sum() == count) & (lengths > 0).all()
        torch._assert_async(fits, f"encoder_lengths must be positive and add up to {count}")
    elif type(lengths) is Tensor and (int(lengths.sum()) != count or bool((lengths < 1).any())):
        raise ValueError(
            f"encoder_lengths {lengths.tolist()} must be positive and add up to the {count} rows of "
            "encoder_hidden_states"
        )


def refuse_wrong_index(image_index: Tensor, count: int) -> None:
    """Raises ValueError unless an (N,) int64 index names each of `count` images at least once, and no other."""
    if image_index.ndim != 1 or image_index.dtype != torch.int64:
        raise ValueError(
            f"image_index must be int64 with an entry for each <image>, got {image_index.dtype} {shape_of(image_index)}"
        )
    if torch.compiler.is_compiling() or type(image_index) is not Tensor:
        return
    if image_index.is_cuda:
        inside = (image_index.clamp(0, count - 1) == image_index).all()
        torch._assert_async(inside, f"image_index names an image that did not come, {count} came")
    elif sorted(set(image_index.tolist())) != list(range(count)):
        raise ValueError(
            f"image_index {image_index.tolist()} must name each of the {number_of(count, 'image')} at least once, "
            f"from 0 to {count - 1}, and no other"
        )


def refuse_missing_images(
    config: ArlowConfig, input_ids: Tensor | None, attention_mask: Any, cache: Cache | None
) -> None:
    """Raises ValueError where the text of a call without images asks for one. Checks ids on a CPU only."""
    if input_ids is None or torch.compiler.is_compiling() or type(input_ids) is not Tensor:
        return
    if input_ids.device.type != "cpu":  # reading ids would wait for the device
        return
    if isinstance(cache, Cache):
        holds_images = any(isinstance(layer, CrossAttentionCacheLayer) for layer in cache.layers)
        if holds_images or (input_ids.shape[1] == 1 and cache.get_seq_length() > 0):
            return
    is_image = input_ids == config.image_token_id
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        is_image = is_image & attention_mask[:, -is_image.shape[1] :].bool()
    if count := int(is_image.sum()):
        raise ValueError(
            f"the text holds {count} <image> (id {config.image_token_id}) but no images came; give pixel_values, "
            "which ArlowProcessor makes of images, or take <image> out of the text"
        )


def refuse_wrong_count(is_image: Tensor, image_count: int) -> None:
    """Raises ValueError unless there is one image for each `<image>`, (B, T) bool."""
    per_row = is_image.sum(1)
    if int(per_row.sum()) != image_count:
        raise ValueError(
            f"got {number_of(image_count, 'image')} for {number_of(int(per_row.sum()), '<image> token')} "
            f"(per row: {per_row.tolist()}); give exactly one image for every <image>"
        )


def refuse_wrong_pairs(pairs: Sequence, *, batch: int, width: int, encoder_tokens: int) -> None:
    """Raises ValueError unless they make a `SegmentTable`: runs in order, disjoint, each in one row."""
    for side, name, limit in ((0, "text", batch * width), (1, "encoder token", encoder_tokens)):
        previous_end = 0
        for number, pair in enumerate(pairs):
            start, end = pair[side]
            where = f"pair {number}: the {name} run {start} to {end}"
            if start >= end:
                raise ValueError(f"{where} is empty or runs backwards; give first and end, first below end")
            if start < previous_end:
                raise ValueError(f"{where} overlaps the one before, which ends at {previous_end}; give them in order")
            if end > limit:
                raise ValueError(f"{where} reaches beyond the {limit} there are")
            if side == 0 and start // width != (end - 1) // width:
                raise ValueError(f"{where} crosses from row {start // width} into the next; split it there")
            if side == 1 and start != previous_end:
                raise ValueError(f"encoder tokens {previous_end} to {start} are in no pair, so no text would see them")
            previous_end = end
        if side == 1 and previous_end != limit:
            raise ValueError(f"encoder tokens {previous_end} to {limit} are in no pair: no text sees them")


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
