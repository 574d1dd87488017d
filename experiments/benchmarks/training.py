"""Whole optimizer steps on images beside Mllama and LLaVA of transformers, and what a run of `arlow fit` adds to them.

Run it with `python -m experiments.benchmarks.training`; some twelve minutes on a quiet machine. Models, frozen encoder
and rows are those of `vision_language`: Mllama has as many layers more as it has cross-attention ones. One thread, and
the process's CPU seconds, which other processes do not lengthen; peak memory is of a process for each case.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from experiments.benchmarks.decoder import SHAPE, TOY_SHAPE
from experiments.benchmarks.loop_overhead import STEP, overheads
from experiments.benchmarks.loss_memory import resident_mib
from experiments.benchmarks.measure import alternate, machine_line, report, table
from experiments.benchmarks.vision_language import (
    BATCH,
    ENCODER,
    PEERS,
    TOY_ENCODER,
    build,
    by_source,
    operations,
    training,
)

OURS = "Arlow, skip_logits"
"""As `arlow fit` calls the model."""
SPEED_GOALS = {1: {"Mllama": 1.1, "LLaVA": 3.0}, 8: {"Mllama": 2.0, "LLaVA": 3.0}}
"""Images a second over a peer's, by images a row."""
MEMORY_GOAL = 0.5
"""Peak memory over Mllama's with eight images a row, at most."""
CACHED_GOAL = 0.9
"""Speed with cached features over that of text alone."""
OVERHEAD_GOAL = 0.03
"""Share of a step that is neither model nor optimizer, at most."""
Row = tuple[str, float, float | None, bool, str]
"""Measure, value, goal, whether that is the most that it may be, and how."""


def speeds(models: dict, images: int, rounds: int) -> list[Row]:
    timings = alternate(training(models, images), rounds, warmup=1, clock=time.process_time)
    count, rows = images * BATCH[images], []
    note = ", ".join(f"{name} {count / timings.median(name):.2f}" for name in timings.seconds)
    for peer in PEERS:
        ratio, goal = timings.speed_over(OURS, peer), SPEED_GOALS[images][peer]
        label = f"images/s over {peer}, {images} image{'s' * (images > 1)} a row"
        rows.append((label, ratio["median"], goal, False, f"{ratio['low']} to {ratio['high']}; images/s: {note}"))
    return rows


def cached(models: dict, rounds: int) -> list[Row]:
    timings = alternate(by_source(models, 1, BATCH[1]), rounds, warmup=1, clock=time.process_time)
    rows: list[Row] = []
    for name, goal in (("cached features", CACHED_GOAL), ("encoder in the step", None)):
        ratio = timings.speed_over(name, "text only")
        note = f"{ratio['low']} to {ratio['high']}; {1e3 * timings.median(name):.0f} ms"
        rows.append((f"speed with {name} over text only", ratio["median"], goal, False, note))
    return rows


def peak_mib(case: str, images: int, toy: bool) -> float:
    """Returns the memory that one step adds to the process; run it in its own process, since a peak only grows."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = build(TOY_SHAPE, TOY_ENCODER) if toy else build(SHAPE, ENCODER)
    training(models, 1, 1)[case]()  # the kernels' own buffers
    run = training(models, images)[case]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_mib("VmRSS")
    run()
    return resident_mib("VmHWM") - before


def memory(toy: bool) -> list[Row]:
    command = [sys.executable, "-m", "experiments.benchmarks.training", *["--toy"] * toy, "--memory"]
    peaks = {
        case: float(json.loads(subprocess.check_output([*command, case, "8"], text=True).splitlines()[-1]))
        for case in (OURS, "Mllama")
    }
    note = ", ".join(f"{case} {peak:,.0f}" for case, peak in peaks.items())
    ratio = peaks[OURS] / max(peaks["Mllama"], 1e-9)
    return [("peak memory over Mllama's, 8 images a row", ratio, MEMORY_GOAL, True, f"MiB of a step: {note}")]


def loop(toy: bool) -> list[Row]:
    with TemporaryDirectory() as scratch:
        found = overheads(Path(scratch), steps=6 if toy else 60)
    return [
        (f"share of a {STEP} s step outside of model and optimizer, {name}", seconds / STEP, OVERHEAD_GOAL, True,
         f"{1e3 * seconds:.1f} ms of CPU a step")
        for name, seconds in found.items()
    ]  # fmt: skip


def line_of(row: Row) -> list[str]:
    measure, value, goal, is_most, note = row
    if goal is None:
        return [measure, f"{value:.3f}", "", "", note]
    reached = value <= goal if is_most else value >= goal
    return [measure, f"**{value:.3f}**", f"{'at most ' * is_most}{goal:g}", "yes" if reached else "no", note]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="sizes of a test: figures say nothing and are not kept")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "IMAGES"), help="only print the peak MiB of one case")
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(peak_mib(arguments.memory[0], int(arguments.memory[1]), arguments.toy)))
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = build(TOY_SHAPE, TOY_ENCODER) if arguments.toy else build(SHAPE, ENCODER)
    counts = [operations(models, images) for images in BATCH]
    rows: list[Row] = []
    for part in (
        *(lambda images=images: speeds(models, images, arguments.rounds) for images in BATCH),
        lambda: cached(models, arguments.rounds),
        lambda: memory(arguments.toy),
        lambda: loop(arguments.toy),
    ):
        rows += (found := part())
        print(*(" | ".join(line_of(row)) for row in found), sep="\n", flush=True)
    speed_table = table(["measure", "value", "goal", "reached", "how"], [line_of(row) for row in rows])
    counted = table(["step", "Arlow, GFLOP", *(f"{peer} over Arlow" for peer in PEERS)], counts)
    text = (
        f"# Training\n\n{machine_line()} CPU seconds of the process.\n\n{speed_table}\n\n"
        f"## What arithmetic allows\n\n{counted}"
    )
    figures = {measure: {"value": value, "goal": goal, "how": note} for measure, value, goal, _, note in rows}
    report(None if arguments.toy else "training", text, {"figures": figures})


if __name__ == "__main__":
    main()
