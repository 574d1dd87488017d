"""What is seen of a run, put together from its recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback

from arlow_vl.training.averaging import MovingAverage
from arlow_vl.training.best import KeepBest
from arlow_vl.training.build import Stage
from arlow_vl.training.loggers import Loggers
from arlow_vl.training.logs import MetricsFile, StepLog
from arlow_vl.training.looks import LookListener, Looks
from arlow_vl.training.progress import Progress
from arlow_vl.training.recipe import Recipe
from arlow_vl.training.speed import WaitingForData
from arlow_vl.training.steps import Readings


@dataclass(frozen=True)
class Watching:
    """Callbacks, by their place in Trainer's list."""

    readings: Readings
    """The first of all."""
    of_validated_weights: list[Callback]
    """In front of the moving average, which takes its weights out again when a validation ends."""
    looks: list[Callback]
    """Behind it, so that it has the step's weights; in front of checkpoints."""


def watching(recipe: Recipe, stage: Stage, averages: Sequence[MovingAverage], *, writes: bool) -> Watching:
    """`writes`: this is the process that has the logs. Looks need the whole model on a process, so not fsdp."""
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
        told = [log for log in logs if isinstance(log, LookListener)]
        looks = [Looks(folder, stage.data.validation, tokenizer_of(stage), watch, told, readings, averages)]
    return Watching(readings, [*logs, best], looks)


def tokenizer_of(stage: Stage) -> Any:
    """The one that is saved with the model, or with its processor."""
    beside = stage.products[1]
    return getattr(beside, "tokenizer", beside)
