"""Parsing of a recipe from its YAML file and the options of the command line."""

import argparse
import contextlib
import dataclasses
import re
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from arlow_vl.models.arlow.spelling import closest
from arlow_vl.training.checkpoint_names import steps_done
from arlow_vl.training.recipe import RECIPES, Recipe, TextRecipe
from arlow_vl.training.recipe_files import read_yaml, refuse_unknown_keys, refuse_unknown_option, refuse_wrong_shapes
from arlow_vl.training.settings import OptimConfig
from arlow_vl.training.sizes import lr_of_width, with_size
from arlow_vl.yaml_text import describe_yaml_error


def parse_recipe(argv: list[str], *, look: Callable[[Recipe], None] = lambda recipe: None) -> Recipe:
    """Returns the recipe of `--config FILE.yaml` and overrides such as `--optim.lr 3e-4`.

    Args:
        look: Called with the recipe before its model fields are checked, which imports libraries for seconds.

    Raises:
        ValueError: the recipe is wrong; the message is one sentence, with the closest known key for a misspelt one.
    """
    front = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    front.add_argument("--config", type=Path)
    try:
        known, overrides = front.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError("--config has no value; name a recipe with --config FILE.yaml") from error
    if known.config is None:
        misspelt = next((word for word in argv if closest(word.partition("=")[0], ["--config"])), None)
        hint = f"unknown option {misspelt}; did you mean --config? " if misspelt else ""
        raise ValueError(f"{hint}name a recipe with --config FILE.yaml; experiments/ has some")
    values = read_yaml(known.config)
    recipe_class = RECIPES.get(str(values.get("stage")))
    if recipe_class is None:
        raise ValueError(f"{known.config}: stage must be {' or '.join(RECIPES)}, got {values.get('stage')!r}")
    refuse_unknown_keys(values, recipe_class, str(known.config))
    for option in (argument for argument in overrides if argument.startswith("--")):
        refuse_unknown_option(option, recipe_class)
    with _named(known.config):
        refuse_wrong_shapes(values, recipe_class)
        recipe = _fill(recipe_class, known.config, overrides)
    look(recipe)
    from arlow_vl.training.model_fields import check_model_fields  # imports transformers

    with _named(known.config):
        check_model_fields(recipe)
    return recipe


@contextlib.contextmanager
def _named(config: Path) -> Iterator[None]:
    """Puts the recipe's path in front of errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"recipe {config}: {error}") from error


def build_parser(recipe_class: type[Recipe]) -> Any:
    """Returns the jsonargparse parser for one kind of recipe."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="arlow fit", exit_on_error=False, print_config=None)
    parser.add_argument("--config", action="config", help="YAML file with the keys below")
    parser.add_class_arguments(recipe_class, as_group=False)
    return parser


def _fill(recipe_class: type[Recipe], config: Path, overrides: list[str]) -> Recipe:
    parser = build_parser(recipe_class)
    arguments, inner = _part_inner(overrides, typing.get_type_hints(recipe_class))
    try:
        namespace = parser.parse_args(["--config", str(config), *arguments])
        namespace.pop("config")
        refuse_wrong_shapes(namespace.as_dict(), recipe_class)  # including options
        values = _built(parser, namespace)
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(_plain_error(error)) from error
    for names, text in inner:
        _set_inner(values, names, text)
        refuse_wrong_shapes(values[names[0]], dict[str, Any], names[0])
    if recipe_class is TextRecipe:
        values |= _sized(values["model"], values["optim"])
    return recipe_class(**values)


def _built(parser: Any, namespace: Any) -> dict[str, Any]:
    """Returns the values of a recipe, with its groups of keys as dataclasses.

    Raises:
        ValueError: a dataclass refuses its values. If the run has also done more steps than `run.max_steps`, the error
            names that alone, as it would come next.
    """
    try:
        return vars(parser.instantiate(namespace))
    except ValueError:
        done, asked = steps_done(Path(namespace.run_dir)), namespace.run.max_steps
        if asked < done:
            raise ValueError(
                f"run.max_steps is {asked}, but {done} steps of {namespace.run_dir} are done; use another run_dir"
            ) from None
        raise


def _sized(model: dict[str, Any], optim: OptimConfig) -> dict[str, Any]:
    """Returns `model` with the fields of its size, and `optim` with the learning rate of that width if it has none."""
    model = with_size(model)
    width = model.get("hidden_size")
    if optim.lr is None and isinstance(width, int) and width > 0:
        optim = dataclasses.replace(optim, lr=lr_of_width(width))
    return {"model": model, "optim": optim}


UNION = (
    r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - (.*?) "
    r"Given value type: .*? Given value: ?"
)
"""Error of jsonargparse for a value of none of the allowed types, whose order differs between its versions."""
NO_NULL = "Expected a NoneType"


def _plain_error(error: Exception) -> str:
    """Returns an error of jsonargparse as one sentence, without the classes on the way to the key."""
    text = re.sub(r"<class '(\w+)'>", r"\1", " ".join(str(error).split()))
    if found := re.search(UNION, text):
        kinds = [kind for kind in found[1].split(" - ") if kind != NO_NULL]
        if all(kind.startswith("Expected a ") for kind in kinds):
            known = ", ".join(kind.removeprefix("Expected a ") for kind in kinds)
            text = f"{text[: found.start()]}Expected a {known} or null. Got value: {text[found.end() :]}"
        else:  # a wrong value inside a group of keys
            text = f"{text[: found.start()]}{kinds[0]}"
    text = text.replace("typing.Literal", "value of ")
    keys = re.findall(r'Parser key "([\w.]+)":', text)
    if len(keys) < 2:
        return text.strip()
    found = text.rpartition(f'Parser key "{keys[-1]}":')[2].strip()
    return f"{'.'.join(keys)}: {found}"


def _part_inner(overrides: list[str], annotations: Mapping[str, Any]) -> tuple[list[str], list[tuple[list[str], str]]]:
    """Splits the options into those for jsonargparse, and (names, text) of those inside free mappings.

    Such an option is `--vision.transform.max_tiles 4`; jsonargparse would keep only the last one, as a string.
    """
    others, inner = [], []
    arguments = iter(overrides)
    for argument in arguments:
        option, has_text, text = argument.partition("=")
        names = option.removeprefix("--").split(".")
        if option.startswith("--") and len(names) > 2 and typing.get_origin(annotations.get(names[0])) is dict:
            inner.append((names, text if has_text else next(arguments, "")))
        else:
            others.append(argument)
    return others, inner


def _set_inner(values: dict[str, Any], names: list[str], text: str) -> None:
    from jsonargparse import get_loader

    for name in names[:-1]:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ValueError(f"--{'.'.join(names)}: {name} is {values!r}, which has no fields")
    try:
        values[names[-1]] = get_loader("yaml")(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--{'.'.join(names)} is not YAML: {describe_yaml_error(error)}") from error


def recipe_of_values(values: Mapping[str, Any], *, where: str) -> Recipe:
    """Returns the recipe of the plain values in a checkpoint. Raises ValueError naming `where` if they are wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(dict(values)))
        try:
            return parse_recipe(["--config", str(path)])
        except ValueError as error:
            raise ValueError(str(error).replace(f"recipe {path}", f"the recipe in {where}")) from error
