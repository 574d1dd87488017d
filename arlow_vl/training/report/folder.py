"""Reading of a run folder's files, while the run is in progress or after it."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from arlow_vl.data.quarantine import NAME as QUARANTINE
from arlow_vl.errors import DataError
from arlow_vl.training.best import FOLDER, facts_of, read_stopped
from arlow_vl.training.look_callback import FILE as LOOKS
from arlow_vl.training.look_results import Look
from arlow_vl.training.refusals import UNFINISHED
from arlow_vl.training.starts import FILE as STARTS

Points = list[tuple[float, float]]
STEPS_NAMED = 20
"""Steps that are listed for each reason why steps were left out."""


@dataclass(frozen=True)
class RunFolder:
    """Content of a run folder."""

    folder: Path
    config: dict[str, Any]
    columns: dict[str, Points]
    """Columns of metrics.csv, `step` among them, each as (step, value) pairs."""
    looks: list[Look]
    left_out: dict[str, list[dict[str, Any]]]
    """Lines of steps.jsonl whose steps changed nothing, by reason."""
    quarantined: dict[tuple[str, str], list[str]]
    """Sample keys by source and reason."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    stopped: dict[str, Any] | None = None
    is_finished: bool = False

    @property
    def step(self) -> int:
        """Last step with a row in metrics.csv."""
        return int(max((points[-1][0] for points in self.columns.values() if points), default=0))


def read_run(folder: Path) -> RunFolder:
    """Reads a run folder. Raises DataError naming the file, and the line, that no run writes."""
    left_out: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(folder / "steps.jsonl", lambda line: line if "left_out" in line else None):
        if line:
            left_out.setdefault(line["left_out"], []).append(line)
    quarantined: dict[tuple[str, str], list[str]] = {}
    for fault in read_lines(folder / QUARANTINE, lambda line: line):
        if "more" not in fault:
            quarantined.setdefault((fault["source"], fault["reason"]), []).append(fault["key"])
    return RunFolder(
        folder=folder,
        config=read_config(folder / "config.yaml"),
        columns=read_columns(folder / "metrics.csv"),
        looks=list(read_lines(folder / LOOKS, Look.from_plain)),
        left_out=left_out,
        quarantined=quarantined,
        starts=list(read_lines(folder / STARTS, lambda line: line)),
        best=facts_of(folder / FOLDER),
        stopped=read_stopped(folder),
        is_finished=is_finished(folder),
    )


def is_finished(folder: Path) -> bool:
    return (folder / "hf").is_dir() and not (folder / UNFINISHED).exists()


def read_lines(path: Path, read: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
    """Yields `read` of each line as JSON; skips a last line that is still being written."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield read(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}, line {number}: no line of a run ({error}); remove it") from error


def read_columns(path: Path) -> dict[str, Points]:
    columns: dict[str, Points] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(line for line in file if line.endswith("\n")):
                for name, text in row.items():
                    if text:
                        columns.setdefault(name, []).append((float(row["step"]), float(text)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not what a run writes ({error}); restore it") from error
    return columns


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not what a run writes ({error}); restore it") from error
    if not isinstance(config, dict) or "run" not in config:
        raise DataError(f"{path} is no recipe of a run; name a run folder")
    return config


def flat(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields keys such as `optim.lr` and `sources.0.name`, each with its value as text."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    pairs = list(inner)
    if pairs and (isinstance(values, dict) or isinstance(values[0], dict)):
        for name, value in pairs:
            yield from flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, "null" if values is None else str(values)
