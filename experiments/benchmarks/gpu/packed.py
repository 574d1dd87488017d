"""Documents of many lengths in a training step: packed into rows, against padded to the longest."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from arlow_vl import ArlowConfig, ArlowForCausalLM
from arlow_vl.models.arlow.layout import BatchLayout
from experiments.benchmarks import packing
from experiments.benchmarks.gpu.bench import Bench, Figure

DOCUMENTS = packing.Lengths(documents=256, batch=32, row=2048, median=400)
TOY_DOCUMENTS = packing.Lengths(documents=4, batch=2, row=32, median=8)
GOAL, GOAL_APART = 1.8, 0.97
SIZE = "0.1b"


def packed_rows(bench: Bench) -> Iterator[Figure]:
    torch.manual_seed(0)
    lengths = TOY_DOCUMENTS if bench.toy else DOCUMENTS
    shape = bench.shape(SIZE)
    forms: Any = packing.layouts(lengths, vocab_size=shape["vocab_size"])
    model = bench.make(lambda: ArlowForCausalLM(ArlowConfig(**shape, use_cross_attention=False))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)  # every round has the same weights
    for batch in (batch for batches in forms.values() for batch in batches if "position_ids" in batch):
        batch["layout"] = BatchLayout.of_batch(model.config, batch["input_ids"], batch["position_ids"])
    forms = {
        name: [{key: x.to(bench.device) for key, x in batch.items()} for batch in batches]
        for name, batches in forms.items()
    }
    tokens = sum(int((batch["input_ids"] != 3).sum()) for batch in forms["packed"])
    cases = {
        name: partial(packing.run, model, optimizer, batches, tokens - lengths.documents)
        for name, batches in forms.items()
    }
    losses = {name: run() for name, run in cases.items()}
    timings = bench.timed(cases, warmup=1, rounds=min(bench.rounds, 5))
    fills = {name: packing.fill(batches) for name, batches in forms.items()}
    apart, joined = "packed", "packed, documents not kept apart"
    for name in forms:
        yield Figure(
            f"{name}: real tokens a second, over padded",
            timings.speed_over(name, "padded")["median"],
            "x",
            predicted=fills[name] / fills["padded"],
            goal=GOAL if name == apart else None,
            note=f"{tokens / timings.median(name):,.0f} tokens/s, fill {fills[name]:.2f}, loss {losses[name]:.4f}; "
            "predicted: the time of a place, filled or not",
        )
    speed = timings.speed_over(apart, joined)["median"]
    yield Figure("packed, documents kept apart over not", speed, "x", predicted=1.0, goal=GOAL_APART)
    off = abs(losses[apart] - losses["padded"])
    yield Figure("difference of the losses, packed and padded", off, "nats", goal=0.01, is_most=True)
