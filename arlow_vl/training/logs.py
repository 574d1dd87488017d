"""Log files of a run folder: steps.jsonl with the loss and samples of each step, and metrics.csv."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch import Callback, LightningModule, Trainer

from arlow_vl.errors import ResourceError
from arlow_vl.json_text import json_text
from arlow_vl.printing import print_line
from arlow_vl.training.steps import Reading
from vision.whole_files import write_whole


class LineFile:
    """Text file that grows by whole lines; `keep` shortens it when a run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Drops the lines that are not wanted, and an incomplete last line.

        Raises:
            ValueError: `wanted` cannot read a line, as something else changed the file.
        """
        number = 0

        def write(kept: BinaryIO) -> None:
            """Copies line by line, as the file of a long run may be too large for memory."""
            nonlocal number
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):  # noqa: B007 - for the error message
                    if line.endswith(b"\n") and wanted(line[:-1].decode()):
                        kept.write(line)

        try:
            write_whole(self.path, write if self.path.exists() else b"")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path}: line {max(1, number)} is not as the run wrote it ({error}); put the file back, or "
                "remove it: then the run resumes without its earlier lines"
            ) from error

    def write(self, line: str) -> None:
        """Appends a line. Raises ResourceError naming the file; an incomplete line is dropped when the run resumes."""
        with self._naming_file(), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def sync(self) -> None:
        with self._naming_file(), open(self.path, "a") as file:
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _naming_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"cannot write {self.path}: {error.strerror}; checkpoints saved before are whole, and the same command "
                "resumes from the last one"
            ) from error


def warn_of_gaps(path: Path, steps: Sequence[int], done: int) -> None:
    """Prints a warning if a log with these steps lacks some of the `done` ones; the run itself is unharmed."""
    if lacking := sorted(set(range(1, done + 1)) - set(steps)):
        print_line(
            f"arlow: {path} lacks {len(lacking):,} of the {done:,} steps that are done, the first is {lacking[0]:,}; "
            "it was cut or removed, and their lines are lost",
            file=sys.stderr,
        )


class StepLog(Callback):
    """Writer of steps.jsonl: step, exact loss and sample keys of each optimizer step, once each, even over resumes."""

    def __init__(self, path: Path) -> None:
        self.lines = LineFile(path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep_until(trainer.global_step)

    def keep_until(self, step: int) -> None:
        """Drops the steps that a killed run wrote after its checkpoint."""
        found: list[int] = []

        def is_before(line: str) -> bool:
            found.append(json.loads(line)["step"])
            return found[-1] <= step

        self.lines.keep(is_before)
        warn_of_gaps(self.lines.path, found, step)

    def step_read(self, reading: Reading) -> None:
        line: dict[str, Any] = {"step": reading.step, "loss": reading.loss.hex(), "keys": reading.keys}
        if reading.left_out:
            line["left_out"] = reading.left_out
        self.lines.write(json_text(line))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.lines.sync()


TRAIN_COLUMNS = ("train_loss", "lr", "grad_norm")
SPEED_COLUMNS = ("tokens_per_second", "images_per_second", "tflop_per_second", "mfu", "data_wait", "memory_gib")
"""Columns that differ between repetitions of a run: tokens and images per second; the model's operations, in 10^12 per
second and (mfu) as a share of those of the device's matrix products; the share of time spent waiting for data; peak
memory in GiB."""


def metrics_of(reading: Reading) -> dict[str, float]:
    """Returns the values of a step by column of metrics.csv, for any log; none if `run.skip_steps` names the step."""
    if reading.is_skipped:
        return {}
    row = dict(zip(TRAIN_COLUMNS, (reading.loss, reading.lr, reading.grad_norm), strict=True))
    return row | speeds_of(reading) | {f"grad_norm_{name}": norm for name, norm in reading.component_norms.items()}


def speeds_of(reading: Reading) -> dict[str, float]:
    """Returns the values of a step that are known, by column of `SPEED_COLUMNS`."""
    seconds = max(reading.seconds, 1e-9)
    row: dict[str, float | None] = {
        "tokens_per_second": reading.tokens / seconds,
        "images_per_second": reading.images / seconds,
        "tflop_per_second": None if reading.operations is None else reading.operations / seconds / 1e12,
        "mfu": reading.mfu,
        "data_wait": reading.data_wait,
        "memory_gib": reading.memory_gib,
    }
    return {name: value for name, value in row.items() if value is not None}


class MetricsFile(Callback):
    """Writer of metrics.csv: a row for each optimizer step, and one with the validation columns for each validation."""

    def __init__(self, path: Path, validation_columns: tuple[str, ...], components: Sequence[str]) -> None:
        self.lines = LineFile(path)
        self.validation_columns = validation_columns
        norms = [f"grad_norm_{component}" for component in components]
        self.columns = ("step", *TRAIN_COLUMNS, *SPEED_COLUMNS, *norms, *validation_columns)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep_until(trainer.global_step)

    def keep_until(self, step: int) -> None:
        """Drops the rows after the checkpoint, and the validation of its step, which is repeated.

        A file of another version is rewritten with today's columns.
        """

        names: list[str] = []
        found: list[int] = []

        def is_before(line: str) -> bool:
            number, *values = line.split(",")
            if not names:
                names.extend([number, *values])
                if number != "step":
                    raise ValueError("it has no names of columns")
                return True
            cells = zip(names[1:], values, strict=True)
            is_validation = any(value for name, value in cells if name.startswith("validation_"))
            if not is_validation:
                found.append(int(number))
            return int(number) < step or (int(number) == step and not is_validation)

        self.lines.keep(is_before)
        warn_of_gaps(self.lines.path, found, step)
        text = self.lines.path.read_text("utf-8")
        if not text:
            self.lines.write(",".join(self.columns))
        elif (header := tuple(text.partition("\n")[0].split(","))) != self.columns:
            rows = [dict(zip(header, line.split(","), strict=False)) for line in text.splitlines()[1:]]
            lines = [",".join(row.get(name, "") for name in self.columns) for row in rows]
            write_whole(self.lines.path, "".join(f"{line}\n" for line in [",".join(self.columns), *lines]))

    def step_read(self, reading: Reading) -> None:
        self._write(reading.step, metrics_of(reading))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer.global_step, validation_of(trainer, self.validation_columns))

    def _write(self, step: int, row: dict[str, float]) -> None:
        values = (f"{row[name]:.6g}" if name in row else "" for name in self.columns[1:])
        self.lines.write(",".join([str(step), *values]))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.lines.sync()


def validation_of(trainer: Trainer, columns: Sequence[str]) -> dict[str, float]:
    """Returns the values of the validation that has just ended, by column."""
    return {name: trainer.callback_metrics[name].item() for name in columns}
