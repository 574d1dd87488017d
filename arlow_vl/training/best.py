"""Keeping the model of the best validation, and early stopping."""

import copy
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from arlow_vl.models.folder_writing import save_folder
from arlow_vl.printing import print_line
from arlow_vl.training.build import finish_model
from arlow_vl.training.components import is_adapter
from arlow_vl.training.logs import validation_of
from vision.whole_files import write_whole

FOLDER, FACTS, STOPPED = "best", "best.json", "stopped.json"


def stopped_early(run_dir: Path, patience: int | None) -> int | None:
    """Returns the step after which a run was stopped early; None if it was not, or this patience would let it resume.

    Raises:
        ValueError: the file that says so is damaged.
    """
    if patience is None:
        return None
    try:
        stopped = read_stopped(run_dir)
        return int(stopped["step"]) if stopped and patience <= int(stopped["patience"]) else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run_dir / STOPPED} is not as the run wrote it ({error}); remove it, and the run resumes"
        ) from error


def read_stopped(run_dir: Path) -> dict[str, Any] | None:
    """Returns step, patience and best value of a run that was stopped early; None for any other."""
    path = run_dir / STOPPED
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


class KeepBest(Callback):
    """Saves the validated model with the smallest value of a validation column, in `best` of the run folder.

    Must come before the moving average in Trainer's list, so that the averaged weights are still in the model. Each
    checkpoint holds the best value, its step and the validations since then, so a resumed run stops where an
    uninterrupted one would. A validation that is repeated after resuming is counted once. Without a column no
    validation counts, and the best model so far is kept.
    """

    def __init__(self, run_dir: Path, products: Sequence[Any], column: str | None, patience: int | None) -> None:
        self.run_dir, self.products = run_dir, products
        self.column, self.patience = column, patience
        self.best: dict[str, Any] | None = None
        """The best validation: column, value and step. None before the first."""
        self.since = 0
        """Validations after the best one."""
        self.counted: int | None = None
        """Step of the last validation that was counted."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since, "counted": self.counted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        if best is None or self.column in (None, best["column"]):  # values of another column do not count
            self.best, self.since = best, state_dict["since"]
            self.counted = state_dict.get("counted")  # missing in checkpoints of earlier versions

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            (self.run_dir / STOPPED).unlink(missing_ok=True)
            finish_replacing(self.run_dir / FOLDER)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the best model where the checkpoint, of an earlier version without `keep_best`, names none."""
        if self.column is None and self.best is None:
            facts = facts_of(self.run_dir / FOLDER)
            if facts and facts["step"] <= trainer.global_step:
                self.best = facts

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.column is None:
            return
        (value,) = validation_of(trainer, [self.column]).values()
        if value == value and (self.best is None or value < self.best["value"]):
            self.best, self.since = {"column": self.column, "value": value, "step": trainer.global_step}, 0
            if trainer.is_global_zero:
                self._save()
        elif self.best is not None and self.counted != trainer.global_step:
            self.since += 1
        self.counted = trainer.global_step
        if self.patience is not None and self.since >= self.patience:
            self._stop(trainer)

    def _save(self) -> None:
        """Replaces the folder of the last best model, so that a whole one with its facts is always there."""
        folder = self.run_dir / FOLDER
        new = folder.with_name(f".{FOLDER}.new")
        shutil.rmtree(new, ignore_errors=True)
        model, *others = self.products
        if any(is_adapter(name) for name, _ in model.named_parameters()):
            model = copy.deepcopy(model)
            finish_model(model)
        save_folder((model, *others, _Facts(self.best or {})), new)
        replace_folder(new, folder)

    def _stop(self, trainer: Trainer) -> None:
        assert self.best is not None
        facts = {"step": trainer.global_step, "patience": self.patience, "best": self.best}
        trainer.should_stop = True
        if trainer.is_global_zero:
            write_whole(self.run_dir / STOPPED, json.dumps(facts, indent=2) + "\n")
            print_line(
                f"stopped early after step {trainer.global_step}: {self.column} has not improved on "
                f"{self.best['value']:.6g} of step {self.best['step']} for {self.since} "
                "validations (run.watch.patience)",
                file=sys.stderr,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes a best model that a previous start of the run saved at a step that this one took differently."""
        folder = self.run_dir / FOLDER
        if trainer.is_global_zero and folder.is_dir() and facts_of(folder) != self.best:
            shutil.rmtree(folder)
            print_line(
                f"{folder} is removed: the run has repeated the steps of this model with another result",
                file=sys.stderr,
            )


class _Facts:
    """Facts about the best model, saved beside it and covered by its checksums."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def save_pretrained(self, folder: Path) -> None:
        (folder / FACTS).write_text(json.dumps(self.facts, indent=2) + "\n", "utf-8")


def facts_of(folder: Path) -> dict[str, Any] | None:
    """Returns column, value and step of the model in a `best` folder; None if there is none."""
    path = folder / FACTS
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def replace_folder(new: Path, folder: Path) -> None:
    """Replaces `folder` by `new`; call `finish_replacing` after a kill in between."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def finish_replacing(folder: Path) -> None:
    """Cleans up after a killed replacement: `folder` is whole afterwards, and the remains are gone."""
    old, new = (folder.with_name(f".{folder.name}.{what}") for what in ("old", "new"))
    if not folder.exists() and old.exists():
        old.rename(folder)
    for path in (old, new, new.with_name(f".{new.name}.partial")):
        shutil.rmtree(path, ignore_errors=True)
