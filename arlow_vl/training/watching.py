"""Callbacks that observe a run, built from its recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback

from arlow_vl.training.averaging import MovingAverage
from arlow_vl.training.best import KeepBest
from arlow_vl.training.build import Stage
from arlow_vl.training.loggers import Loggers
from arlow_vl.training.logs import MetricsFile, StepLog
from arlow_vl.training.look_callback import LookListener, Looks
from arlow_vl.training.progress import Progress
from arlow_vl.training.recipe import Recipe
from arlow_vl.training.speed import WaitingForData
from arlow_vl.training.steps import Readings


@dataclass(frozen=True)
class Watching:
    """Callbacks, by their position in Trainer's list."""

    readings: Readings
    """Reader of step results; comes first."""
    of_validated_weights: list[Callback]
    """Callbacks before the moving average, which restores the trained weights when a validation ends."""
    looks: list[Callback]
    """Looks, after the moving average, which then has the step's weights, and before checkpoints."""


def watching(recipe: Recipe, stage: Stage, averages: Sequence[MovingAverage], *, writes: bool) -> Watching:
    """Builds the callbacks; `writes` is True on the process that writes logs.

    There are no looks with fsdp, as they need the whole model on one process.
    """
    watch, folder, columns = recipe.run.watch, recipe.run_dir, stage.module.validation_columns
    trained = [component for component, part in stage.module.policy.items() if part.is_trained]
    logs: list[Any] = []
    if writes:
        logs = [
            StepLog(folder / "steps.jsonl"),
            MetricsFile(folder / "metrics.csv", columns, trained),
            Progress(recipe.run.max_steps),
            *([Loggers(recipe, columns)] if watch.loggers else []),
        ]
    engine, waiting = recipe.run.engine, WaitingForData()
    readings = Readings(logs, every=watch.log_every, waiting=waiting, tensor_parallel=engine.tensor_parallel)
    products = (*stage.products, *stage.data.trained_prompts)
    best = KeepBest(folder, products, watch.keep_best, watch.patience)  # without a column too: see there
    looks = []
    if watch.show_samples and engine.strategy != "fsdp":
        listeners = [log for log in logs if isinstance(log, LookListener)]
        looks = [Looks(folder, stage.data.validation, tokenizer_of(stage), watch, listeners, readings, averages)]
    return Watching(readings, [*logs, best], looks)


def tokenizer_of(stage: Stage) -> Any:
    """Returns the tokenizer that is saved with the model, by itself or in the processor."""
    beside = stage.products[1]
    return getattr(beside, "tokenizer", beside)
