"""Finds the runs that produced a model, from the files beside it, and the images that their recipes trained it on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arlow_vl.data.formats.detect import is_there
from arlow_vl.data.index.places import place_of
from arlow_vl.data.index.reading import Index
from arlow_vl.data.index.ready import ready_indexes
from arlow_vl.data.remote import is_address
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

METRICS, CONFIG = "metrics.csv", "config.yaml"


def runs_of(model: Path) -> list[Path]:
    """Returns the run folders from the first stage to the one that produced the model, as far as they exist."""
    found: list[Path] = []
    run = model.parent
    while ((run / METRICS).is_file() or (run / CONFIG).is_file()) and run not in found:
        found.append(run)
        before = next(iter(_seen_from(started_from(read_recipe(run)), run)), None)
        if before is None:
            break
        run = before.parent
    return found[::-1]


def read_recipe(run: Path) -> dict[str, Any]:
    """Returns the recipe of a run as plain values; empty if there is none or it cannot be read."""
    try:
        recipe = yaml.safe_load((run / CONFIG).read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}  # the files beside a model are optional
    return recipe if isinstance(recipe, dict) else {}


def started_from(recipe: dict[str, Any]) -> str:
    """Returns the model folder that a run starts from; empty if its weights were random."""
    named = next((recipe[name] for name in ("checkpoint", "text_checkpoint") if recipe.get(name)), "")
    return named if isinstance(named, str) else ""


def _seen_from(path: str, run: Path) -> Iterator[Path]:
    """Yields the existing folders that a path may mean: relative to here, or to a parent of the run.

    Paths in a recipe are relative to the directory in which it ran, which is not recorded.
    """
    if path:
        yield from (place for place in _places(path, run) if place.is_dir())


def _places(path: str, run: Path) -> list[Path]:
    return [Path(path), *(parent / path for parent in run.resolve().parents)]


@dataclass(frozen=True)
class TrainedImages:
    """Images that a model was trained on, according to the recipes of its runs."""

    sources: tuple[str, ...] = ()
    """Sources of `indexes`, each once: of several that read the same files, the first."""
    indexes: tuple[Index, ...] = ()
    """Their indexes, each once, even if several sources and runs read the same files."""
    not_checked: tuple[str, ...] = ()
    """A sentence for each source or earlier model whose images are not known."""


def trained_images(model: Path) -> TrainedImages:
    """Collects the training images from ready indexes; builds no index, and reads no source that takes long."""
    sources: dict[tuple[Path, ...], str] = {}
    indexes: dict[Path, Index] = {}
    not_checked = []
    runs = runs_of(model)
    for run in runs:
        recipe = read_recipe(run)
        for source in _image_sources(recipe):
            try:
                found = {index.folder: index for index in _indexes_of(source, run)}
                sources.setdefault(tuple(found), source["data"])
                indexes |= found
            except (DataError, OSError) as error:
                not_checked.append(f"source {visible(str(source.get('name')))} of {visible(str(run))}: {error}")
    first = read_recipe(runs[0]) if runs else {}
    if first.get("checkpoint") and first.get("stage") == "image_text":
        not_checked.append(f"no recipe is beside {visible(str(first['checkpoint']))}, which the run began with")
    names = dict.fromkeys(sources.values())  # a relative path may name other files in each run
    return TrainedImages(tuple(names), tuple(indexes.values()), tuple(not_checked))


def _image_sources(recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    sources = recipe.get("sources")
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict) and isinstance(source.get("data"), str) and source.get("kind") != "text":
            yield source


def _indexes_of(source: dict[str, Any], run: Path) -> Sequence[Index]:
    """Returns the ready indexes of a source. Raises DataError if the source does not exist or has no ready index."""
    data, images, format = source["data"], source.get("images"), source.get("format")
    if is_address(data):
        return ready_indexes(data, images=images, format=format)
    places = [place for place in _places(data, run) if place_of(place).base.is_dir()]
    if not places:
        raise DataError(f"no such file or folder: {visible(data)}")
    # For a run in runs/photos that reads photos/train.csv, runs/photos is another folder of that name.
    place = next(filter(is_there, places), places[0])
    root = next(_seen_from(images, run), None) if isinstance(images, str) else None
    return ready_indexes(place, images=root, format=format)
