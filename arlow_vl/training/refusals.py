"""Checks of a recipe and its run folder that run before libraries which take seconds are imported."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from arlow_vl.models.arlow.spelling import did_you_mean
from arlow_vl.training.checkpoint_names import steps_done
from arlow_vl.training.recipe import Recipe, TextRecipe, validation_columns_of
from arlow_vl.training.recipe_files import read_yaml
from arlow_vl.training.resume import refuse_other_recipe

UNFINISHED = "unfinished"
"""File that exists while a finished run is extended, when `hf` is still that of the shorter run."""
FOLDERS = ("checkpoints", "hf", "best", "looks", "packed")
FILES = (
    "config.yaml",
    "metrics.csv",
    "steps.jsonl",
    "looks.jsonl",
    "quarantine.jsonl",
    "starts.jsonl",
    "run.lock",
    UNFINISHED,
)
"""Files of a run folder, which must not be folders; `FOLDERS` must not be files."""
MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""Packages for each logger that a recipe may name; one of them is enough."""


def refuse_before_loading(recipe: Recipe) -> None:
    """Raises ValueError for a recipe that cannot be run, or not resumed, on any machine."""
    refuse_misfits(recipe)
    changes_of(recipe)


def refuse_misfits(recipe: Recipe) -> None:
    """Raises ValueError for a recipe that cannot be run on any machine; a dry run checks the same."""
    refuse_missing_loggers(recipe.run.watch.loggers)
    refuse_unknown_column(recipe)
    packed = recipe.packed_folder if isinstance(recipe, TextRecipe) else None
    refuse_files(run_dir=recipe.run_dir, packed_folder=packed, cache_features=getattr(recipe, "cache_features", None))


def changes_of(recipe: Recipe) -> list[str]:
    """Returns the allowed differences from the recipe of an earlier start, a sentence each.

    Raises:
        ValueError: the folder holds checkpoints or a model of another recipe.
    """
    path, product, done = recipe.run_dir / "config.yaml", recipe.run_dir / "hf", steps_done(recipe.run_dir)
    if not (path.exists() and (product.exists() or done)):
        return []
    try:
        return refuse_other_recipe(read_yaml(path), recipe, step=done)
    except ValueError as error:
        weights = f", and `checkpoint: {product}` there to begin with this model" if product.is_dir() else ""
        raise ValueError(
            f"{recipe.run_dir} holds a run of another recipe: {error}; use another run_dir{weights}"
        ) from error


def refuse_missing_loggers(names: Sequence[str]) -> None:
    """Raises ValueError for the first logger whose package is not installed."""
    for name in names:
        if not any(importlib.util.find_spec(module) for module in MODULES[name]):
            raise ValueError(
                f"run.watch.loggers names {name}, which is not installed; install it with "
                f"`pip install 'arlow-vl[{name}]'`, or take it out"
            )


def refuse_unknown_column(recipe: Recipe) -> None:
    """Raises ValueError if `run.watch.keep_best` is not a validation column of the recipe, or is used with fsdp."""
    name, columns = recipe.run.watch.keep_best, validation_columns_of(recipe)
    if name is not None and name not in columns:
        raise ValueError(f"run.watch.keep_best is {name}, which no validation gives; {did_you_mean(name, columns)}")
    if name is not None and recipe.run.engine.strategy == "fsdp":
        raise ValueError("run.watch.keep_best needs a whole model on a device, and fsdp has none; leave it out")


def refuse_files(**folders: Path | None) -> None:
    """Raises ValueError if a path is a file instead of a folder or the other way round, naming the key or path."""
    run_dir = folders["run_dir"]
    for name in FOLDERS:
        if run_dir is not None and (run_dir / name).is_file():
            raise ValueError(f"{run_dir / name} is a file, where a run has a folder; remove it, or use another run_dir")
    for name in FILES:
        if run_dir is not None and (run_dir / name).is_dir():
            raise ValueError(f"{run_dir / name} is a folder, where a run has a file; remove it, or use another run_dir")
    for name, folder in folders.items():
        for place in (folder, *folder.parents) if folder else ():
            if place.exists() and not place.is_dir():
                raise ValueError(f"{name} is {folder}, but {place} is a file; name a folder")
