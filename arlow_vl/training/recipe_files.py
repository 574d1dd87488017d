"""Reading of a recipe's file, and checks of its keys and types, whose errors name the key."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from arlow_vl.models.arlow.spelling import did_you_mean
from arlow_vl.yaml_text import OneOfEachKey, describe_yaml_error
from vision.near_names import did_you_mean_file

MAY_BE_INFINITE = ("optim.grad_clip",)
"""Keys whose number may be infinite: an infinite norm clips nothing."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the keys and values of a YAML file. Raises ValueError if it is missing or holds anything else."""
    if not path.is_file():
        advice = f"name a .yaml{f' of {path}' * path.is_dir()}, as experiments/ has them"
        what = "is no file" if path.exists() else "does not exist"
        raise ValueError(f"recipe {path} {what}; {did_you_mean_file(path, advice)}")
    try:
        values = yaml.load(path.read_text("utf-8"), OneOfEachKey)
    except UnicodeDecodeError as error:
        raise ValueError(f"recipe {path} is not YAML: it is not text in UTF-8 ({error})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path} is not YAML: {describe_yaml_error(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys and values, as the recipes in experiments/ do")
    _refuse_loops(values, path, set(), set())
    return values


def _refuse_loops(values: Any, path: Path, around: set[int], seen: set[int]) -> None:
    """Raises ValueError if a value contains itself through a YAML alias (`*name`).

    `around` holds the ids of the enclosing values, `seen` those that are checked already.
    """
    if not isinstance(values, Mapping | list) or id(values) in seen:
        return
    if id(values) in around:
        raise ValueError(f"{path}: a value holds itself through an alias (*name); write it out")
    around.add(id(values))
    for value in values.values() if isinstance(values, Mapping) else values:
        _refuse_loops(value, path, around, seen)
    around.remove(id(values))
    seen.add(id(values))


def refuse_unknown_keys(values: Any, annotation: Any, where: str) -> None:
    """Raises ValueError for an unknown key; free mappings (model, vision, policy) are checked elsewhere."""
    annotation = _without_null(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(values, Mapping):
        known = typing.get_type_hints(annotation)
        for key, value in values.items():
            if key not in known:
                raise ValueError(f"{where}: unknown key {key}; {did_you_mean(key, known)}")
            refuse_unknown_keys(value, known[key], f"{where}: {key}")
    elif typing.get_origin(annotation) is list and isinstance(values, list):
        for value in values:
            refuse_unknown_keys(value, typing.get_args(annotation)[0], where)


def refuse_unknown_option(option: str, recipe_class: type) -> None:
    """Raises ValueError for an option such as `--optim.lr` whose key the recipe does not have."""
    annotation: Any = recipe_class
    before = "--"
    for part in option.removeprefix("--").partition("=")[0].removesuffix("+").split("."):
        annotation = _without_null(annotation)
        if not dataclasses.is_dataclass(annotation):
            return
        known = typing.get_type_hints(annotation)
        if part not in known:
            raise ValueError(f"unknown option {option}; {did_you_mean(part, known, before=before)}")
        annotation = known[part]
        before += f"{part}."


def refuse_wrong_shapes(values: Any, annotation: Any, key: str = "") -> None:
    """Raises ValueError naming the key of a value that no field accepts.

    These are null where a value is needed, anything but a mapping for a group of keys, empty text, NaN and infinity.
    """
    kinds = _kinds(annotation)
    fields = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    if values is None:
        if Any not in kinds and type(None) not in kinds:
            raise ValueError(f"{key} is null; give it a value, or leave it out")
    elif isinstance(values, float) and not math.isfinite(values) and key not in MAY_BE_INFINITE:
        raise ValueError(f"{key} is {values}; give a finite number")
    elif isinstance(values, str) and not values.strip() and kinds & {str, Path}:
        raise ValueError(f"{key} is empty; give it a value, or leave it out")
    elif fields is not None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{key} must hold keys and values, got {values!r}")
        _refuse_missing(values, fields, key)
        hints = typing.get_type_hints(fields)
        for name, value in values.items():
            refuse_wrong_shapes(value, hints.get(name, Any), f"{key}.{name}" if key else str(name))
    elif isinstance(values, Mapping | list):
        inner = next((typing.get_args(kind)[-1] for kind in kinds if typing.get_args(kind)), Any)
        for name, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            refuse_wrong_shapes(value, inner, f"{key}.{name}")


def _refuse_missing(values: Mapping[str, Any], fields: type, key: str) -> None:
    """Raises ValueError for a group of keys that lacks one; jsonargparse would name its class instead of its key."""
    if not key or key in ("run", "optim"):  # options may give the rest
        return
    no_value = dataclasses.MISSING
    for field in dataclasses.fields(fields):
        if field.default is no_value and field.default_factory is no_value and values.get(field.name) is None:
            raise ValueError(f"{key} has no {field.name}; give it a value")


def _kinds(annotation: Any) -> set[Any]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return set(typing.get_args(annotation)) if is_union else {annotation}


def _without_null(annotation: Any) -> Any:
    """Returns the only type besides None of an optional annotation, else the annotation itself."""
    kinds = _kinds(annotation) - {type(None)}
    return next(iter(kinds)) if len(kinds) == 1 else annotation
