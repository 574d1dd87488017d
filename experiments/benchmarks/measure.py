"""Fair timing on a noisy machine: the cases take turns, and every ratio is of two neighbours in one round."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "timm", "tokenizers")


@dataclass(frozen=True)
class Timings:
    seconds: dict[str, list[float]]
    """A list with one entry a round for each case."""

    def median(self, case: str) -> float:
        return statistics.median(self.seconds[case])

    def ratios(self, case: str, peer: str) -> list[float]:
        """How many times as fast as the peer, round by round, sorted."""
        return sorted(theirs / ours for ours, theirs in zip(self.seconds[case], self.seconds[peer], strict=True))

    def speed_over(self, case: str, peer: str) -> dict[str, float]:
        ratios = self.ratios(case, peer)
        quarter = len(ratios) // 4
        return {
            "median": round(statistics.median(ratios), 3),
            "low": round(ratios[quarter], 3),
            "high": round(ratios[-1 - quarter], 3),
        }


def alternate(cases: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> Timings:
    """Runs every case once a round, in turn."""
    for run in cases.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)


def machine() -> dict[str, object]:
    """What a figure must be read with."""
    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        processor = next(
            (x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), processor
        )
    return {
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {name: version(name) for name in PACKAGES},
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines: list[Sequence[object]] = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def report(name: str, text: str, figures: dict[str, object]) -> None:
    """Prints the text, writes it as Markdown, and the figures with the machine's description as JSON beside it."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n")
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")
