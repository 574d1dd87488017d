"""Comparison of the recipes of two starts of a run, of which only some keys may differ."""

import copy
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from arlow_vl.training.recipe import RECIPES, Recipe, differences, first_difference, to_plain
from arlow_vl.training.schedule import lr_factor
from arlow_vl.training.settings import OptimConfig

MAY_CHANGE = (
    # How a run is carried out, not what it trains on.
    "max_bad_fraction",
    *(f"run.{key}" for key in ("engine", "watch", "threads", "workers", "checkpoint_every", "max_hours", "skip_steps")),
    # Paths: their content is compared by hashes, in the loader's state and of the frozen tensors.
    *("run_dir", "tokenizer", "text_checkpoint", "checkpoint", "vision.weights", "train_text", "validation_text"),
    *("packed_folder", "cache_features", "sources.*.data", "sources.*.images", "validation_sources.*.data"),
    "validation_sources.*.images",
)
"""Keys, with * for each source, whose values may differ when a run resumes; docs/training.md lists them too."""


def comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plain recipe without the keys that may change; keys of later versions get their defaults."""
    kept: dict[str, Any] = copy.deepcopy(with_defaults(recipe))
    for key in MAY_CHANGE:
        _drop(kept, key.split("."))
    if kept.get("packing"):  # the loader reports changed weights
        _drop(kept, ["sources", "*", "weight"])
    return kept


def with_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plain recipe with the defaults of keys that it lacks; unchanged if its stage is unknown."""

    def fill(values: Any, annotation: Any) -> Any:
        if not (dataclasses.is_dataclass(annotation) and isinstance(values, Mapping)):
            return values
        hints = typing.get_type_hints(annotation)
        filled = dict(values)
        for field in dataclasses.fields(annotation):
            if field.name in filled:
                filled[field.name] = fill(filled[field.name], hints[field.name])
            elif field.default is not dataclasses.MISSING:
                filled[field.name] = to_plain(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                filled[field.name] = to_plain(field.default_factory())
        return filled

    recipe_class = RECIPES.get(str(recipe.get("stage")))
    return fill(recipe, recipe_class) if recipe_class else dict(recipe)


def refuse_other_recipe(old: Mapping[str, Any], recipe: Recipe, *, step: int) -> list[str]:
    """Returns the allowed differences from an earlier plain recipe, a sentence each, after `step` optimizer steps.

    A run may be extended if the finished steps would have had the same learning rates.

    Raises:
        ValueError: anything else differs.
    """
    new = to_plain(recipe)
    was, now = comparable(old), comparable(new)
    run = was.get("run")
    steps = (run.get("max_steps") if isinstance(run, Mapping) else None), recipe.run.max_steps
    if step and isinstance(run, Mapping) and isinstance(steps[0], int):
        was["run"] = {**run, "max_steps": steps[1]}
    if difference := first_difference(was, now):
        raise ValueError(difference)
    if step and steps[0] != steps[1]:
        _refuse_other_rates(recipe.optim, steps, step)
    return differences(with_defaults(old), new)


def _refuse_other_rates(optim: OptimConfig, steps: tuple[int, int], step: int) -> None:
    if steps[1] < step:
        raise ValueError(f"run.max_steps was {steps[0]} and is {steps[1]}, but {step} steps are done")
    for number in range(step):
        before, now = (lr_factor(number, optim=optim, max_steps=count) for count in steps)
        if before != now:
            raise ValueError(
                f"run.max_steps was {steps[0]} and is {steps[1]}, but with optim.schedule {optim.schedule} step "
                f"{number + 1} would have had another rate; constant can be made longer, and wsd before its decay"
            )


def _drop(values: Any, path: list[str]) -> None:
    for place in _places(values, path[:-1]):
        place.pop(path[-1], None)


def _places(values: Any, path: list[str]) -> list[dict[str, Any]]:
    places = [values]
    for part in path:
        if part == "*":
            places = [item for place in places if isinstance(place, list) for item in place]
        else:
            places = [place[part] for place in places if isinstance(place, dict) and place.get(part) is not None]
    return [place for place in places if isinstance(place, dict)]
