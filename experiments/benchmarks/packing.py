"""A training step over documents of many lengths: packed into rows, against padded to the longest."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from arlow_vl import ArlowConfig, ArlowForCausalLM
from experiments.benchmarks.measure import Timings, alternate, table

DOCUMENTS, BATCH = 64, 16
ROW = 512
MEDIAN, SPREAD = 100, 0.7  # of the log-normal lengths
SHAPE = dict(  # noqa: C408
    vocab_size=8192, hidden_size=384, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=6,
    num_key_value_heads=2, use_cross_attention=False,
)  # fmt: skip
GOAL = 1.6
Inputs = dict[str, Tensor]


def documents() -> list[Tensor]:
    lengths = torch.empty(DOCUMENTS).log_normal_(math.log(MEDIAN), SPREAD)
    return [torch.randint(10, SHAPE["vocab_size"], (int(n),)) for n in lengths.clamp(8, ROW)]


def padded(texts: Sequence[Tensor]) -> Inputs:
    """(documents, longest), right padded."""
    ids = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=3)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


def packed(texts: Sequence[Tensor], *, isolated: bool = True) -> Inputs:
    """Rows of `ROW` tokens, the longest document that fits next; positions restart where a document does."""
    left, rows = sorted(texts, key=len, reverse=True), []
    while left:
        row, room = [], ROW
        for text in list(left):
            if len(text) <= room:
                row.append(text)
                room -= len(text)
                left = [other for other in left if other is not text]
        rows.append(row)
    ids = torch.full((len(rows), ROW), 3)
    labels, positions = torch.full_like(ids, -100), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        start = 0
        for text in row:
            end = start + len(text)
            ids[number, start:end] = text
            labels[number, start + 1 : end] = text[1:]  # no document is asked for another's first token
            positions[number, start:end] = torch.arange(len(text))
            start = end
        positions[number, start:] = torch.arange(ROW - start)  # what is left is a document of padding
    if not isolated:
        positions = torch.arange(ROW).expand_as(ids)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def in_batches(rows: Inputs) -> list[Inputs]:
    """As many batches as the documents have padded."""
    parts = {name: tensor.chunk(DOCUMENTS // BATCH) for name, tensor in rows.items()}
    return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]


def fill(batches: Sequence[Inputs]) -> float:
    tokens = sum(int((batch["input_ids"] != 3).sum()) for batch in batches)
    return tokens / sum(batch["input_ids"].numel() for batch in batches)


def run(model, optimizer, batches: Sequence[Inputs], targets: int) -> float:
    """One optimizer step over all documents; the loss is the mean over their targets, however they are laid out."""
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=targets, use_cache=False, skip_logits=True).loss
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def layouts() -> dict[str, list[Inputs]]:
    texts = documents()
    in_order = [texts[i : i + BATCH] for i in range(0, DOCUMENTS, BATCH)]
    by_length = sorted(texts, key=len)
    return {
        "packed": in_batches(packed(texts)),
        "padded": [padded(batch) for batch in in_order],
        "padded, sorted by length": [padded(by_length[i : i + BATCH]) for i in range(0, DOCUMENTS, BATCH)],
        "packed, documents not kept apart": in_batches(packed(texts, isolated=False)),
    }


def measure_packing(rounds: int) -> tuple[dict, str]:
    torch.manual_seed(0)
    model = ArlowForCausalLM(ArlowConfig(**SHAPE)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)  # every round has the same weights
    forms = layouts()
    tokens = sum(int((batch["input_ids"] != 3).sum()) for batch in forms["packed"])
    losses = {name: run(model, optimizer, batches, tokens - DOCUMENTS) for name, batches in forms.items()}
    cases: dict[str, Callable] = {
        name: partial(run, model, optimizer, batches, tokens - DOCUMENTS) for name, batches in forms.items()
    }
    timings: Timings = alternate(cases, rounds, warmup=1)
    figures, lines = {}, []
    for name, batches in forms.items():
        speed = timings.speed_over(name, "padded")
        figures[name] = {
            "fill": round(fill(batches), 3),
            "tokens_per_second": round(tokens / timings.median(name)),
            "over_padded": speed,
            "loss": losses[name],
        }
        spread = f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})"
        lines.append(
            [name, f"{fill(batches):.2f}", f"{tokens / timings.median(name):,.0f}", spread, f"{losses[name]:.5f}"]
        )
    header = ["form", "fill", "real tokens/s", f"over padded (goal {GOAL} for packed)", "loss"]
    return figures, table(header, lines)
