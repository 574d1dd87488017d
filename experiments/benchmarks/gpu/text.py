"""Text training at four sizes beside Llama of transformers: model FLOP/s as a share of the card's."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from arlow_vl import ArlowConfig, ArlowForCausalLM
from arlow_vl.models.arlow.layout import BatchLayout
from experiments.benchmarks.decoder import adamw_step
from experiments.benchmarks.gpu.arithmetic import Work, text_work
from experiments.benchmarks.gpu.bench import Bench, Figure, graphs

GOALS = {"0.1b": 45.0, "0.8b": 55.0, "0.3b": 50.0, "0.05b": 45.0}
"""Percent, by size, the most telling first."""
ROWS = {"0.1b": 16, "0.8b": 8, "0.3b": 8, "0.05b": 16}
ROW, TOY_ROW = 2048, 16
ONE_SIZE = 45.0
"""Seconds that a size takes, compilation among them."""


def text_training(bench: Bench) -> Iterator[Figure]:
    for size in ["0.1b"] if bench.toy else GOALS:
        if not bench.has(ONE_SIZE):
            return
        yield from in_memory(partial(measured, bench, size), 2 if bench.toy else ROWS[size])


def in_memory(measure: Callable[[int], Iterator[Figure]], rows: int) -> Iterator[Figure]:
    """With half the rows where they do not fit, until they do."""
    while True:
        try:
            yield from measure(rows)
            return
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows //= 2
        torch.cuda.empty_cache()


def measured(bench: Bench, size: str, rows: int) -> Iterator[Figure]:
    shape: dict[str, Any] = bench.shape(size)
    row = TOY_ROW if bench.toy else ROW
    models: dict[str, Any] = {
        "Arlow": bench.make(lambda: ArlowForCausalLM(ArlowConfig(**shape, use_cross_attention=False))),
        "Llama": bench.make(lambda: LlamaForCausalLM(LlamaConfig(**shape))),
    }
    work = text_work(models["Arlow"].config, rows * row, row)
    ids = torch.randint(10, shape["vocab_size"], (rows, row))
    as_given = {name: x.to(bench.device) for name, x in {"input_ids": ids, "labels": ids}.items()} | {
        "use_cache": False
    }
    inputs = {"Arlow": text_as_loaded(models["Arlow"], ids), "Llama": as_given}
    steps = {name: adamw_step(model, inputs[name]) for name, model in models.items()}
    cases = {"Arlow": partial(steps["Arlow"], skip_logits=True), "Arlow, logits": steps["Arlow"]}
    cases["Llama"] = steps["Llama"]
    torch._dynamo.reset()  # else a second size would be compiled for any shape
    for form in ("eager", "compiled"):
        if form == "compiled":
            bench.compile(layer for model in models.values() for layer in model.model.layers)
        yield from in_form(bench, f"{size}, {rows} x {row}, {form}", cases, work, GOALS[size])


def text_as_loaded(model: ArlowForCausalLM, ids: torch.Tensor) -> dict[str, Any]:
    """(B, T) rows of one document each as the loader of `arlow fit` gives them: the layout is made on the CPU."""
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    layout = BatchLayout.of_batch(model.config, ids, positions)
    given = {"input_ids": ids, "labels": ids, "position_ids": positions, "layout": layout}
    return {name: x.to(model.device) for name, x in given.items()} | {"use_cache": False}


def in_form(bench: Bench, label: str, cases: dict[str, Callable], work: Work, goal: float | None) -> Iterator[Figure]:
    """Utilisation by each case, the first of which is ours; the goal is of its compiled form."""
    form, ours = label.rpartition(" ")[2], next(iter(cases))
    before = graphs()
    for run in cases.values():
        run()
    made = graphs() - before
    memory = {case: bench.peak_bytes(run) for case, run in cases.items()}
    before = graphs()
    timings = bench.timed(cases)
    again = graphs() - before
    peak = bench.datasheet[0]
    for case in cases:
        rate = work.operations / timings.median(case)
        note = f"{1e3 * timings.median(case):.3g} ms, {100 * rate / bench.matmul:.1f}% of the measured matmul"
        note += f", {memory[case] / 2**30:.1f} GiB, graphs {made}, and {again} more while measured"
        if case == ours:
            over = (f"{timings.speed_over(ours, peer)['median']:.2f} x {peer}" for peer in cases if peer != ours)
            note += f", {', '.join(over)}; {work.describe(bench, form)}"
        yield Figure(
            measure=f"{case}, {label}",
            value=100 * rate / peak,
            unit=f"% of {peak / 1e12:.4g} TFLOP/s",
            predicted=100 * work.operations / work.seconds(bench, form) / peak if case == ours else None,
            goal=goal if case == ours and form == "compiled" else None,
            note=note,
        )
