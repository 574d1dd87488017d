"""Measures a model on held-out text to the last bit: its loss, and the SHA-256 of all logits."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arlow_vl.data.packing import bits_per_byte, collate_rows, pack_documents, unigram_entropy
from arlow_vl.data.prompts import document_ends

ROW_LENGTH, ROWS_AT_ONCE, MOST_ROWS = 256, 16, 256


@dataclass(frozen=True)
class Rows:
    """Held-out text as packed rows of token ids."""

    ids: list[np.ndarray]
    tokens_per_byte: float
    unigram_entropy: float
    """Nats per token of the best model without context."""


@dataclass(frozen=True)
class HeldOut:
    """Measurement of one model on one text."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    logits_sha256: str


def read_rows(text: Path, tokenizer: Any) -> Rows:
    """Packs a text, in any format, into up to `MOST_ROWS` rows. Raises DataError for text that yields none."""
    with tempfile.TemporaryDirectory() as cache:
        packed = pack_documents(text, tokenizer, ROW_LENGTH, Path(cache))
        entropy = unigram_entropy(packed.token_counts(len(tokenizer)))
        return Rows([packed[row] for row in range(min(MOST_ROWS, len(packed)))], packed.tokens_per_byte, entropy)


@torch.inference_mode()
def measure_text(model: Any, tokenizer: Any, rows: Rows) -> HeldOut:
    """Measures the model on the rows, without any image."""
    nats, tokens, digest = 0.0, 0, hashlib.sha256()
    ends = document_ends(tokenizer)
    for first in range(0, len(rows.ids), ROWS_AT_ONCE):
        batch = collate_rows(rows.ids[first : first + ROWS_AT_ONCE], *ends)
        labels = batch["labels"]
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        digest.update(logits.contiguous().view(torch.uint8).numpy().data)
        nats += torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum"
        ).item()
        tokens += int((labels[:, 1:] >= 0).sum())
    loss = nats / tokens
    return HeldOut(loss, bits_per_byte(loss, rows.tokens_per_byte), digest.hexdigest())


def describe_text(before: HeldOut, after: HeldOut, rows: Rows) -> str:
    """Describes both measurements, beside the loss of token frequencies alone."""
    return (
        f"{before.bits_per_byte!r} bits a byte before, {after.bits_per_byte!r} after; {before.loss:.4f} nats a token "
        f"(single tokens: {rows.unigram_entropy:.4f}); SHA-256 of all logits {before.logits_sha256[:12]} before, "
        f"{after.logits_sha256[:12]} after"
    )
