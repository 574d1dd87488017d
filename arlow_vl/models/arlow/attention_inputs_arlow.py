# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Positions, documents, image segments and self-attention mask of a call.

The functions stand in the order in which `ArlowModel.forward` calls them; `model` is that ArlowModel.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.masking_utils import create_causal_mask, packed_sequence_mask_function

from .attention import ARLOW_ATTENTION, TextRuns, packed_causal_mask, refuse_unsafe_flex, takes_varlen
from .cache_arlow import CrossAttentionCacheLayer
from .documents import document_ids, documents_of_keys, has_packed_rows
from .encoder_checks import Images
from .image_numbers import count_images
from .input_checks import Text, refuse_packing_for_flash, refuse_wrong_turn
from .layout import BatchLayout
from .segment_building import build_segments, cached_segments
from .segments import SegmentMask, SegmentTable, image_positions


def count_positions(
    inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | PagedAttentionCache | None
) -> Tensor:
    """(B, T) or (1, T) int64 positions, counted from the first token of text, so that left padding changes nothing."""
    width = inputs_embeds.shape[1]
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -width:]
    past = cache.get_seq_length() if cache is not None else 0
    return (torch.arange(width, device=inputs_embeds.device) + past)[None]


def find_documents(
    text: Text, position_ids: Tensor, images: Images, cache: Cache | PagedAttentionCache | None
) -> Tensor | None:
    """(B, T) int64 document numbers (`document_ids`).

    None for a decoding step of one token, which continues the document in the cache, and for continuous batching.
    """
    is_paged = cache is not None and not isinstance(cache, Cache)
    if is_paged or (text.shape[1] == 1 and images.encoder_hidden_states is None):
        return None
    return document_ids(position_ids.expand(text.shape), text.mask)


def find_segments(
    model,
    text: Text,
    documents: Tensor | None,
    image_lengths: Tensor | None,
    image_index: Tensor | None,
    given: SegmentTable | SegmentMask | None,
    cross_caches: list[CrossAttentionCacheLayer],
) -> SegmentTable | SegmentMask | None:
    """The images that the text of this call sees, of those in the cache and of this call's; None: there are none.

    `image_lengths` is (M,) int64, the encoder tokens of each image of this call, None: none comes. `given` are segments
    that the caller made. The `cross_caches` record where the images of this call stand.
    """
    cross_cache = cross_caches[0] if cross_caches else None
    cached = cross_cache if cross_cache is not None and cross_cache.is_initialized else None
    is_eager = not torch.compiler.is_compiling()
    if given is None and image_lengths is None:
        if cached is None:
            return None
        if not (is_eager and is_packed(text, documents)):
            return cached_segments(cached.lengths, cached.get_seq_length())

    is_image, image_lengths = _places_of_images(model, text, documents, image_lengths, given)
    if is_eager:  # a compiled graph reads no value of its batch, and its call is not checked against the cache
        past = int(cross_cache.text_layer.get_seq_length()) if cross_cache is not None else 0
        if given is None:
            refuse_wrong_turn(is_image, count_images(image_lengths, image_index), text, past, cross_cache)
        for layer in cross_caches:
            layer.take_turn(is_image, past)
    if given is not None:
        return given

    assert documents is not None
    segments = build_segments(model.config, is_image, documents, image_lengths, image_index, cached)
    if cached is not None and segments.is_empty:  # no block will run and update the cache
        for layer in cross_caches:
            layer.lengths = segments.kept_lengths
    return segments


def _places_of_images(
    model,
    text: Text,
    documents: Tensor | None,
    image_lengths: Tensor | None,
    given: SegmentTable | SegmentMask | None,
) -> tuple[Tensor, Tensor | None]:
    """(B, T) bool, where the images of a call stand, and their lengths on the device of its text."""
    if isinstance(given, SegmentTable):  # made by hand: they stand where its runs begin
        return given.first_seeing(*text.shape), image_lengths
    if image_lengths is None:  # packed text behind a cache: its later documents see none of the images there
        return torch.zeros_like(documents, dtype=torch.bool), documents.new_zeros(0)
    is_image = image_positions(model.config, model.embed_tokens, *text[:3])
    return is_image, image_lengths.to(is_image.device)  # counts may have stayed on the CPU


def self_attention_inputs(
    model,
    inputs_embeds: Tensor,
    text: Text,
    documents: Tensor | None,
    cache: Cache | PagedAttentionCache | None,
    layout: BatchLayout | None,
) -> dict[str, Any]:
    """Keyword arguments for every self-attention layer: a mask, or runs of documents for a varlen kernel."""
    implementation = str(model.config._attn_implementation)
    refuse_unsafe_flex(implementation, inputs_embeds.device.type, torch.__version__)
    if documents is not None and _runs_varlen(model, inputs_embeds, text.attention_mask, cache):
        return {"attention_mask": None, "text_runs": _text_runs(documents, layout)}
    packed, same_document, past = is_packed(text, documents, layout), None, 0
    # Most packed batches are whole rows on SDPA: their mask is two comparisons, and needs no vmap over indices.
    if packed and cache is None and text.attention_mask is None and implementation in (ARLOW_ATTENTION, "sdpa"):
        return {"attention_mask": packed_causal_mask(documents)}
    if packed:
        width = text.shape[1]
        if cache is not None:
            past, (width, _) = cache.get_seq_length(), cache.get_mask_sizes(width, 0)
        same_document = packed_sequence_mask_function(documents_of_keys(documents, past, width))
    # Without position_ids: transformers would look for documents in them by a rule of its own.
    mask = create_causal_mask(
        config=model.config,
        inputs_embeds=inputs_embeds,
        attention_mask=text.attention_mask,
        cache=cache,
        and_mask_function=same_document,
    )
    inputs: dict[str, Any] = {"attention_mask": mask}
    if "flash" in implementation:  # its own kernels take no such mask, and look for documents too
        inputs["position_ids"] = None
        if packed:
            refuse_packing_for_flash(text, past, implementation)
            runs = _text_runs(documents, layout).runs
            inputs |= {f"cu_seq_lens_{side}": runs.cu_seqlens for side in "qk"}
            inputs |= {f"max_length_{side}": runs.max_seqlen for side in "qk"}
    return inputs


def is_packed(text: Text, documents: Tensor | None, layout: BatchLayout | None = None) -> bool:
    """True where a row holds several documents. Positions that were counted here never restart and need no check."""
    if layout is not None:
        return torch.compiler.is_compiling() or layout.is_packed
    return documents is not None and text.position_ids is not None and text.shape[1] > 1 and has_packed_rows(documents)


def _text_runs(documents: Tensor, layout: BatchLayout | None) -> TextRuns:
    return TextRuns.of_documents(documents) if layout is None else layout.text_runs


def _runs_varlen(
    model, inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | PagedAttentionCache | None
) -> bool:
    """True for whole texts if `takes_varlen`; a step over a filled cache has one query and would gain nothing."""
    if attention_mask is not None and attention_mask.ndim != 2:
        return False
    if isinstance(cache, Cache):
        if any(x.is_compileable for x in cache.layers[: model.config.num_hidden_layers]) or cache.get_seq_length() > 0:
            return False
    elif cache is not None:  # continuous batching's pages
        return False
    if model.config._attn_implementation != ARLOW_ATTENTION:
        return False
    dropout = model.layers[0].self_attn.dropout_now
    return takes_varlen(ARLOW_ATTENTION, inputs_embeds, model.config.head_dim, dropout)
