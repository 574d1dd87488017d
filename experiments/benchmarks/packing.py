"""A training step over documents of many lengths: packed into rows, against padded to the longest."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Lengths:
    """Documents of log-normal length, and the rows that they fill."""

    documents: int = DOCUMENTS
    batch: int = BATCH
    """Documents of a padded batch."""
    row: int = ROW
    """Tokens of a packed row, and the most of a document."""
    median: int = MEDIAN


ON_CPU = Lengths()


def documents(lengths: Lengths = ON_CPU, vocab_size: int = SHAPE["vocab_size"]) -> list[Tensor]:
    drawn = torch.empty(lengths.documents).log_normal_(math.log(lengths.median), SPREAD)
    return [torch.randint(10, vocab_size, (int(n),)) for n in drawn.clamp(8, lengths.row)]


def padded(texts: Sequence[Tensor]) -> Inputs:
    """(documents, longest), right padded."""
    ids = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=3)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


def packed(texts: Sequence[Tensor], *, isolated: bool = True, width: int = ROW) -> Inputs:
    """Rows of `width` tokens, the longest document that fits next; positions restart where a document does."""
    left, rows = sorted(texts, key=len, reverse=True), []
    while left:
        row, room = [], width
        for text in list(left):
            if len(text) <= room:
                row.append(text)
                room -= len(text)
                left = [other for other in left if other is not text]
        rows.append(row)
    ids = torch.full((len(rows), width), 3)
    labels, positions = torch.full_like(ids, -100), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        start = 0
        for text in row:
            end = start + len(text)
            ids[number, start:end] = text
            labels[number, start + 1 : end] = text[1:]  # no document is asked for another's first token
            positions[number, start:end] = torch.arange(len(text))
            start = end
        positions[number, start:] = torch.arange(width - start)  # what is left is a document of padding
    if not isolated:
        positions = torch.arange(width).expand_as(ids)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def in_batches(rows: Inputs, batches: int = DOCUMENTS // BATCH) -> list[Inputs]:
    """As many batches as the documents have padded."""
    parts = {name: tensor.chunk(batches) for name, tensor in rows.items()}
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


def layouts(lengths: Lengths = ON_CPU, vocab_size: int = SHAPE["vocab_size"]) -> dict[str, list[Inputs]]:
    texts = documents(lengths, vocab_size)
    starts, by_length = range(0, lengths.documents, lengths.batch), sorted(texts, key=len)
    count = len(starts)
    return {
        "packed": in_batches(packed(texts, width=lengths.row), count),
        "padded": [padded(texts[i : i + lengths.batch]) for i in starts],
        "padded, sorted by length": [padded(by_length[i : i + lengths.batch]) for i in starts],
        "packed, documents not kept apart": in_batches(packed(texts, isolated=False, width=lengths.row), count),
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
