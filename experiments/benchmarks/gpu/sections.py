"""Runs sections one after another, each in a process of its own with a limit, and writes what each found.

A process, so that one that hangs can be ended, and that an error on the device, which spoils it for the process, spoils
one section. They are forked from one that has imported everything and touched no device.
"""

import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.gpu.bench import Bench, Figure
from experiments.benchmarks.measure import machine, table
from vision.whole_files import write_whole

HEADER = ("measure", "value", "unit", "predicted", "goal", "", "how")


@dataclass(frozen=True)
class Section:
    name: str
    run: Callable[[Bench], Iterator[Figure]]
    limit: float
    """Seconds after which it is ended."""


def run_sections(sections: Sequence[Section], out: Path, *, seconds: float, toy: bool, command: str) -> list[str]:
    """Each writes NAME.json and NAME.md into `out`, from its first figure on; the names of those that failed."""
    out.mkdir(parents=True, exist_ok=True)
    ends, failed = time.monotonic() + seconds, []
    for section in sections:
        limit = min(section.limit, ends - time.monotonic())
        if not run_in_process(section, out, limit=limit, toy=toy, command=command):
            failed.append(section.name)
        write_whole(out / "summary.md", summary(out, sections))
    return failed


def run_in_process(section: Section, out: Path, *, limit: float, toy: bool, command: str) -> bool:
    """Returns True if the section came to its end."""
    result = Result(out, section.name, command, limit)
    if limit <= 0:
        result.end("not started: the time of all sections was spent")
        return False
    forked = multiprocessing.get_context("fork")
    process = forked.Process(target=_child, args=(section, result, toy))
    process.start()
    process.join(limit)
    if process.is_alive() and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)  # what it started too
        process.join()
        Result.read(out, section.name, command, limit).end(f"ended at its limit of {limit:.0f} s")
    elif process.exitcode not in (0, 1):  # else it has written what happened
        Result.read(out, section.name, command, limit).end(f"its process died with exit code {process.exitcode}")
    return process.exitcode == 0


def _child(section: Section, result: "Result", toy: bool) -> None:
    os.setpgrp()
    torch.set_num_threads(1 if toy else torch.get_num_threads())
    device = "cuda" if torch.cuda.is_available() and not toy else "cpu"
    bench = Bench(device, toy, ends=time.monotonic() + 0.95 * result.limit)
    try:
        fill(result, section.run(bench))
    except BaseException as error:
        traceback.print_exc()
        result.end(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        raise SystemExit(1) from error


def fill(result: "Result", figures: Iterator[Figure]) -> None:
    """Written after every figure, so that what was measured stays."""
    result.describe()
    for figure in figures:
        result.add(figure)
        print(line_of(figure), flush=True)
    result.end(None)


class Result:
    """Findings of a section, in `NAME.json` and as a table in `NAME.md`."""

    def __init__(self, out: Path, name: str, command: str, limit: float) -> None:
        self.out, self.limit, self.began = out, limit, time.monotonic()
        self.values: dict[str, Any] = {"section": name, "command": command, "limit": limit, "error": "not finished"}
        self.values |= {"seconds": 0.0, "figures": [], "machine": {}}

    @classmethod
    def read(cls, out: Path, name: str, command: str, limit: float) -> "Result":
        """Reads what a process left that was ended."""
        result = cls(out, name, command, limit)
        path = out / f"{name}.json"
        if path.is_file():
            result.values = json.loads(path.read_text())
        return result

    def describe(self) -> None:
        self.values["machine"] = machine()
        self.write()

    def add(self, figure: Figure) -> None:
        self.values["figures"].append(asdict(figure) | {"falls_short": figure.falls_short})
        self.write()

    def end(self, error: str | None) -> None:
        self.values["error"] = error
        self.write()
        if error:
            print(f"{self.values['section']}: {error}", flush=True)

    def write(self) -> None:
        self.values["seconds"] = round(time.monotonic() - self.began, 1)
        name = self.values["section"]
        write_whole(self.out / f"{name}.json", json.dumps(self.values, indent=2) + "\n")
        write_whole(self.out / f"{name}.md", markdown(self.values) + "\n")


def line_of(figure: Figure) -> str:
    return " | ".join(row_of(asdict(figure) | {"falls_short": figure.falls_short}))


def row_of(figure: dict[str, Any]) -> list[str]:
    goal = figure["goal"]
    short = "" if goal is None else "fell short" if figure["falls_short"] else "reached"
    bound = "" if goal is None else f"{'at most ' * figure['is_most']}{goal:.3g}"
    predicted = "" if figure["predicted"] is None else f"{figure['predicted']:.3g}"
    return [figure["measure"], f"{figure['value']:.3g}", figure["unit"], predicted, bound, short, figure["note"]]


def markdown(values: dict[str, Any]) -> str:
    found = values["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in found.get("versions", {}).items())
    error = f"\n\n**Error: {values['error']}**" if values["error"] else ""
    return (
        f"# {values['section']}\n\n{found.get('device', 'no device')}; {versions}; {values['seconds']:.0f} s. "
        f"`{values['command']}`{error}\n\n{table(HEADER, [row_of(figure) for figure in values['figures']])}"
    )


def summary(out: Path, sections: Sequence[Section]) -> str:
    """The tables of all sections that have run, and what fell short of its goal."""
    found = [json.loads(path.read_text()) for s in sections if (path := out / f"{s.name}.json").is_file()]
    short = [row_of(figure) for values in found for figure in values["figures"] if figure["falls_short"]]
    failed = [[values["section"], values["error"]] for values in found if values["error"]]
    parts = [markdown(values) for values in found]
    parts.append("# Fell short\n\n" + (table(HEADER, short) if short else "Nothing that was measured."))
    parts += ["# Failed\n\n" + table(("section", "error"), failed)] if failed else []
    return "\n\n".join(parts) + "\n"
