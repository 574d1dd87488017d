"""Locates the data of a task and checks that they exist, before libraries that take seconds are loaded."""

from dataclasses import dataclass
from pathlib import Path

from arlow_vl.data.formats.detect import is_there, open_source
from arlow_vl.data.remote import is_address, is_file_address, path_of_file_address
from arlow_vl.data.text_files import text_files
from arlow_vl.errors import DataError
from arlow_vl.evaluation.tasks.task import Task

NO_TRAINING = "the control class_means needs captions of training data; give --training, or take it out of the task"


@dataclass(frozen=True)
class TaskData:
    """The location of a source, in a format of docs/formats.md."""

    source: str
    images: str | None
    """Folder from which image paths start; None: by the format's own rule."""
    format: str | None
    """Name of the format; None: detected."""


def place_of(task: Task, data: str | Path) -> TaskData:
    """Returns the source of a task: below `data` if that is a folder, else `data`, a file, a glob or an address."""
    data = here_or_address(data)
    if isinstance(data, str):
        return TaskData(data, None, task.format or None)
    folder = data if data.is_dir() else data.parent
    images = folder / task.images
    source = data / task.data if data.is_dir() else data
    return TaskData(str(source), str(images) if task.images and images.is_dir() else None, task.format or None)


def here_or_address(data: str | Path) -> str | Path:
    """Returns a local path, also for a file: address, or any other address unchanged: a Path would lose its slashes."""
    if is_file_address(data):
        data = path_of_file_address(str(data))
    return data if is_address(data) else Path(data)


def refuse_missing_data(task: Task, place: TaskData) -> None:
    """Raises DataError if nothing, or nothing of a known format, is there. Addresses are not checked yet."""
    if is_address(place.source):
        return
    if task.kind == "text":
        text_files([place.source])
    else:
        open_source(place.source, images=place.images, format=place.format).close()


def training_place(task: Task, data: str | Path, named: str | None) -> TaskData | None:
    """Returns the training data that the command names, else those that the task names if they exist."""
    if named is not None:
        return TaskData(named, None, None)
    data = here_or_address(data)
    if task.training and isinstance(data, Path) and data.is_dir() and is_there(data / task.training):
        return TaskData(str(data / task.training), place_of(task, data).images, None)
    return None


def refuse_missing_training(task: Task, data: str | Path, named: str | None) -> None:
    """Raises DataError if the named training data cannot be read, or there are none and a control needs them."""
    place = training_place(task, data, named)
    if place is not None and task.kind != "text":
        refuse_missing_data(task, place)
    if place is None and "class_means" in task.controls:
        raise DataError(NO_TRAINING)
