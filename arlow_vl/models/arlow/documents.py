# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Documents in rows: a row may hold several, one after another, and none sees anything of another.

This is the one rule that tells them apart, for images and for every kernel of self-attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -1
"""Document number of padding, and group number of a token that sees no images."""


def text_before(is_text: Tensor) -> Tensor:
    """(B, T) int64: the column of the last text token in front of each token, -1 where there is none."""
    columns = torch.where(is_text, torch.arange(is_text.shape[1], device=is_text.device), -1)
    return F.pad(columns.cummax(1).values[:, :-1], (1, 0), value=-1)


def document_ids(position_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """(B, T) int64 document numbers, unique in the batch, PADDING on padding; documents start where positions restart.

    `position_ids` is (B, T); `attention_mask` (B, T) is nonzero on text. Padding inside a document does not split it,
    and neither does a gap in its positions: [0, 1, 2, 10, 11, 0, 1] are two documents.
    """
    if attention_mask is None:
        starts = F.pad(position_ids[:, 1:] <= position_ids[:, :-1], (1, 0), value=True)
        return starts.flatten().cumsum(0).view_as(starts)
    text = attention_mask.bool()
    previous = text_before(text)
    restarts = position_ids <= position_ids.gather(1, previous.clamp(min=0))
    starts = text & ((previous < 0) | restarts)
    return starts.flatten().cumsum(0).view_as(starts).masked_fill(~text, PADDING)


def first_documents(documents: Tensor) -> Tensor:
    """(B, 1): the number of each row's first document, which continues what a cache holds. PADDING: no text."""
    return documents.gather(1, (documents != PADDING).int().argmax(1, keepdim=True))


def has_packed_rows(documents: Tensor) -> bool:
    """True where a row holds several documents. Waits for the device; while compiling always True, without a check."""
    if torch.compiler.is_compiling():
        return True
    return bool(((documents != PADDING) & (documents != first_documents(documents))).any())


def documents_of_keys(documents: Tensor, past: Tensor | int, width: int) -> Tensor:
    """(B, width) int64: the document of each key of self-attention, for `documents` (B, T) behind `past` columns.

    What the cache holds belongs to the first document of the row: a later one sees nothing of it.
    """
    if documents.shape[1] == width:
        return documents
    columns = past + torch.arange(documents.shape[1], device=documents.device)
    return first_documents(documents).repeat(1, width).index_copy(1, columns, documents)
