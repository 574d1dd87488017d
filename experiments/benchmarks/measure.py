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

from arlow_vl.models.arlow.linear import cpu_vendor

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "timm", "tokenizers")


@dataclass(frozen=True)
class Timings:
    seconds: dict[str, list[float]]
    """A list with one entry a round for each case."""

    def median(self, case: str) -> float:
        return statistics.median(self.seconds[case])

    def ratios(self, case: str, peer: str) -> list[float]:
        """Ratios of the peer's seconds to the case's, one per round, sorted."""
        return sorted(theirs / ours for ours, theirs in zip(self.seconds[case], self.seconds[peer], strict=True))

    def speed_over(self, case: str, peer: str) -> dict[str, float]:
        ratios = self.ratios(case, peer)
        quarter = len(ratios) // 4
        return {
            "median": round(statistics.median(ratios), 3),
            "low": round(ratios[quarter], 3),
            "high": round(ratios[-1 - quarter], 3),
        }


def alternate(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Runs every case once a round, in turn. `time.process_time` as the clock leaves out who else is at work."""
    for run in cases.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return Timings(seconds)


def machine() -> dict[str, object]:
    """Returns the facts that a figure must be read with."""
    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        processor = next(
            (x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), processor
        )
    return {
        "processor": processor,
        "vendor": cpu_vendor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {name: version(name) for name in PACKAGES},
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines: list[Sequence[object]] = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine_line() -> str:
    """The processor, as a sentence under a title."""
    return f"{machine_words()} Medians of alternating rounds; in brackets the middle half of the rounds."


def machine_words() -> str:
    found = machine()
    return f"{found['processor']} ({found['vendor']}, {found['instructions']}), {found['threads']} threads."


def speed_row(
    measure: str, timings: Timings, units: int, unit: str, peers: Sequence[str], goal: float
) -> tuple[dict, list[list[str]]]:
    """The figures of one measure, and its lines of the table: every form of Arlow over the fastest peer."""
    fastest = min(peers, key=timings.median)
    speeds = {case: round(units / timings.median(case), 1) for case in timings.seconds}
    ours = {case: timings.speed_over(case, fastest) for case in timings.seconds if case not in peers}
    theirs = [f"{speeds[peer]:,.0f}" for peer in peers]
    lines = []
    for case, ratio in ours.items():
        label = measure + case.removeprefix("Arlow")
        spread = f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"
        lines.append([label, unit, f"{speeds[case]:,.0f}", *theirs, spread, f"{goal:.2f}"])
    return {"unit": unit, "speed": speeds, "fastest_peer": fastest, "over_fastest_peer": ours}, lines


def report(name: str | None, text: str, figures: dict[str, object]) -> None:
    """Prints the text; under a name it is kept as Markdown, with figures and the machine's description as JSON.

    A text that does not name the processor gets a line that does, behind its title.
    """
    if machine_words() not in text:
        title, _, rest = text.partition("\n\n") if text.startswith("# ") else ("", "", text)
        text = "\n\n".join(part for part in (title, machine_words(), rest) if part)
    print(text)
    if name is None:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n")
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")
