"""Whether a vision-language model writes text as the text model did that it was built from."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from arlow_vl.data.packing import PackedRows, bits_per_byte, collate_rows, pack_documents, unigram_entropy

ROW_LENGTH, ROWS_AT_ONCE = 256, 16


@torch.inference_mode()
def measure(model: Any, rows: PackedRows, max_rows: int, *, bos_token_id: int, eos_token_id: int) -> dict[str, str]:
    """Loss in nats per token, bits per byte, and the SHA-256 of all logits; floats in hexadecimal, to the last bit."""
    nats, tokens, digest = 0.0, 0, hashlib.sha256()
    for first in range(0, min(max_rows, len(rows)), ROWS_AT_ONCE):
        some = [rows[i] for i in range(first, min(first + ROWS_AT_ONCE, len(rows)))]
        batch = collate_rows(some, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
        labels = batch["labels"]
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        digest.update(logits.contiguous().numpy().data)
        nats += torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        ).item()
        tokens += int((labels[:, 1:] >= 0).sum())
    loss = nats / tokens
    return {
        "loss": loss.hex(),
        "bits_per_byte": bits_per_byte(loss, rows.tokens_per_byte).hex(),
        "logits_sha256": digest.hexdigest(),
    }


def compare_text(
    before: Any, after: Any, tokenizer: Any, text: Path, train_text: Path, cache: Path, *, max_rows: int
) -> dict:
    """What `measure` gives before and after the vision stage, beside the entropy of single tokens in training."""
    rows = pack_documents(text, tokenizer, ROW_LENGTH, cache)
    train = pack_documents(train_text, tokenizer, ROW_LENGTH, cache, max_tokens=2_000_000)
    result = {"unigram_entropy": unigram_entropy(train.token_counts(len(tokenizer)))}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    for name, model in (("before", before), ("after", after)):
        measured = measure(model, rows, max_rows, **ends)
        result |= {f"{key}_{name}": value for key, value in measured.items()}
    return result


def describe_text(text: dict[str, Any]) -> str:
    """What `compare_text` found, for people."""
    loss, before, after = (
        float.fromhex(text[key]) for key in ("loss_before", "bits_per_byte_before", "bits_per_byte_after")
    )
    same = all(text[f"{name}_before"] == text[f"{name}_after"] for name in ("bits_per_byte", "logits_sha256"))
    return "\n".join(
        [
            f"held-out text: loss {loss:.4f} nats a token, entropy of single tokens {text['unigram_entropy']:.4f}",
            f"bits per byte of held-out text: {before!r} before the vision stage, {after!r} after it",
            "every logit is equal to the last bit" if same else "THE TEXT HAS CHANGED: the decoder was not frozen",
        ]
    )
