"""Steps of `make demo`: real data, text stage, vision stage, captions, answers, report. Finished ones are skipped."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from arlow_vl.cores import cores

ARLOW = (sys.executable, "-P", "-m", "arlow_vl.cli")
RUNS = Path("runs/first-light")
RECIPES = Path(__file__).parent
DATA, TOKENIZER, TEXT, VISION, RESULTS = (
    Path("data"),
    RUNS / "tokenizer",
    RUNS / "text" / "hf",
    RUNS / "vision" / "hf",
    RUNS / "results",
)
VOCABULARY, TOKENIZER_BYTES = 4096, 8_000_000
SCENES = 5000
"""Images of training."""
TESTS: dict[tuple[str, ...], int] = {("scenes-new", "scenes-pairs"): 300, ("easy-vqa",): 2000}
"""Tasks, and the items of each that are answered at most."""
PROOF = RESULTS / "frozen.json"


def fit(recipe: Path) -> list:
    """The words of a command that trains: on a GPU, or in two processes, which are faster than one of two threads."""
    devices = 1 if torch.cuda.is_available() else min(2, cores())
    return ["fit", "--config", recipe, "--run.engine.devices", devices]


def evaluation(
    tasks: Sequence[str], limit: int, *, model: Path = VISION, data: Path = DATA, results: Path = RESULTS
) -> list:
    """The words of a command that answers these tasks."""
    words = ["evaluate", "--model", model, "--data", data, "--output", results, "--features", data / "features"]
    return [*words, *(word for task in tasks for word in ("--task", task)), "--limit", limit]


STEPS = {
    "fetch the data": ["data", "fetch", "--root", DATA],
    "compose scenes": [
        *("data", "scenes", "--root", DATA, "--out", DATA / "scenes"),
        *("--train", SCENES, "--workers", 2),
    ],
    "train the tokenizer": [
        *("tokenizer", "train", DATA / "text/train.jsonl", "--output", TOKENIZER),
        *("--vocab-size", VOCABULARY, "--max-bytes", TOKENIZER_BYTES),
    ],
    "text stage": fit(RECIPES / "text.yaml"),
    "vision stage": fit(RECIPES / "vision.yaml"),
    **{f"answers to {' and '.join(tasks)}": evaluation(tasks, limit) for tasks, limit in TESTS.items()},
    "text as before": [
        *("verify-frozen", TEXT, VISION, "--text", DATA / "text/validation.jsonl", "--output", PROOF),
    ],
    "report": ["report", RESULTS],
}
DISK = {"environment": 6.1e9, "data": 2.4e9}
"""Bytes that `make demo` takes in all; what is there already counts."""
PRODUCTS = {
    "train the tokenizer": TOKENIZER / "tokenizer.json",
    **{f"answers to {' and '.join(tasks)}": RESULTS / tasks[-1] / "metrics.json" for tasks in TESTS},  # written last
    "text as before": PROOF,
}


def disk_space(free: int) -> str:
    """A line on the disk space that the demo takes, and what is free."""
    parts = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in DISK.items())
    total = sum(DISK.values())
    return f"disk space: {total / 1e9:.1f} GB in all ({parts}); {free / 1e9:.1f} GB are free now"


def arlow(words: list) -> int:
    """Runs one command and returns its exit status; when it is to stop, it saves first, and is waited for."""
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to the command too
    with subprocess.Popen([*ARLOW, *map(str, words)]) as command:
        signal.signal(signal.SIGTERM, lambda number, _: command.send_signal(number))
        return command.wait()


def run() -> int:
    start = time.monotonic()
    print(disk_space(shutil.disk_usage(Path.cwd()).free), flush=True)
    for number, (title, words) in enumerate(STEPS.items(), 1):
        if (product := PRODUCTS.get(title)) and product.exists():
            continue
        print(f"\n== {number}/{len(STEPS)} {title}: arlow {' '.join(map(str, words))}", flush=True)
        began = time.monotonic()
        if status := arlow(words):
            return status
        print(f"== {title}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"\nfirst light in {(time.monotonic() - start) / 60:.1f} minutes")
    print(f"look at it: {RESULTS / 'report.html'}")
    print(f"caption an image: .venv/bin/arlow caption --model {VISION} tests/samples/scene.png")
    print(f"see where it looked: .venv/bin/arlow explain --model {VISION} tests/samples/scene.png")
    print("how much another seed changes: .venv/bin/python -m experiments.first_light.seeds --seeds 3")
    return 0


if __name__ == "__main__":
    sys.exit(run())
