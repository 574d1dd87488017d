"""Tasks, read from YAML and checked before anything is computed.

A caption or question task shows images and either lets the model write (`decoding`) or compares the log-probabilities
of given answers (`likelihood`). A text task measures the log-probability of whole documents (`perplexity`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from arlow_vl.errors import DataError
from arlow_vl.evaluation.tasks.measures import NAMED
from arlow_vl.models.arlow.spelling import did_you_mean
from arlow_vl.printing import visible
from arlow_vl.yaml_text import OneOfEachKey, describe_yaml_error
from vision.near_names import did_you_mean_file

TaskKind = Literal["caption", "question", "text"]
Normalise = Literal["none", "characters", "bytes"]
"""The length of an answer by which its log-probability is divided; as lm-eval's acc, acc_norm and acc_bytes."""
IMAGE_CONTROLS = ("shuffled", "blank_image", "no_image")
PRIORS = ("most_frequent", "question_prior", "nearest_neighbour", "class_means")
OF_FEATURES = ("nearest_neighbour", "class_means")
"""Priors that compare images by their encoder features."""
CONTROLS: Mapping[TaskKind, tuple[str, ...]] = {
    "caption": (*IMAGE_CONTROLS, "most_frequent", *OF_FEATURES),
    "question": (*IMAGE_CONTROLS, "most_frequent", "question_prior", "nearest_neighbour"),
    "text": ("unigram",),
}
METRICS: Mapping[TaskKind, tuple[str, ...]] = {kind: tuple(NAMED[kind]) for kind in get_args(TaskKind)}
GROUPS = ("kind", "first words")
ANSWERS = "answers"
LONGEST_NAME = 100
SHIPPED = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Settings of generation."""

    max_new_tokens: int
    """Maximum number of tokens of an answer."""
    num_beams: int = 1
    """Number of beams; 1 is greedy search."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Settings of a comparison of answers by log-probability."""

    choices: tuple[str, ...]
    """The answers to compare; "answers" alone stands for all answers of the training source, or else of the set."""
    normalise: Normalise = "none"


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Settings of the sliding windows in which long documents are read."""

    window: int
    """Tokens per window."""
    stride: int
    """Tokens of a window that count; those before them are context."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A test set, with what the model is asked, and the metrics and controls."""

    name: str
    """Name of the task, and of its folder in the results."""
    title: str = ""
    """Heading of its scores; empty: the name."""
    kind: TaskKind
    data: str
    """Source (docs/formats.md), relative to the folder of `--data`."""
    images: str = ""
    """Folder from which image paths start, relative to that of `--data`; empty: by the format's own rule."""
    format: str = ""
    """Format of the source; empty: detected."""
    training: str = ""
    """Source of text priors, relative to the folder of `--data`; empty: the set's other images."""
    instruction: str = ""
    """Text after each question, or the whole request for a caption."""
    decoding: Decoding | None = None
    likelihood: Likelihood | None = None
    perplexity: Perplexity | None = None
    metrics: tuple[str, ...]
    controls: tuple[str, ...]
    """Controls, whose scores are printed beside every score of the model."""
    groups: tuple[str, ...] = ()
    """Groups to score separately: by the kind of question in the data, or by a question's first two words."""

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.name)

    @property
    def sha256(self) -> str:
        """SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def shipped_tasks() -> list[str]:
    """Returns the names of the tasks that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_task(name: str) -> Task:
    """Loads a shipped task by its name, or one from a file. Raises DataError if it is no valid task."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in (known := shipped_tasks()):
            raise DataError(f"no task is called {visible(name)}; {did_you_mean(name, known)}; or name a .yaml")
        path = SHIPPED / f"{name}.yaml"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=OneOfEachKey)
    except OSError as error:
        advice = did_you_mean_file(path, "name the .yaml of a task")
        raise DataError(f"{visible(str(path))}: {error.strerror}; {visible(advice)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fault = describe_yaml_error(error) if isinstance(error, yaml.YAMLError) else str(error)
        raise DataError(f"{visible(str(path))} is not YAML: {visible(fault)}") from None
    except RecursionError:
        raise DataError(f"{visible(str(path))}: no task, it is nested too deep; see docs/evaluation.md") from None
    return parse_task(values, visible(str(path)))


def refuse_one_name_twice(tasks: Sequence[Task]) -> None:
    """Raises DataError if two tasks would write the same folder."""
    if len({task.name for task in tasks}) < len(tasks):
        raise DataError("two tasks have one name, which is their folder's; name each once")


def parse_task(values: Any, where: str) -> Task:
    """Builds a task from a YAML's values. Raises DataError, naming `where` and the field, for invalid ones."""
    task = _built(Task, values, where)
    if not task.name or not set(task.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_"):
        raise DataError(f"{where}: name must be of a-z, 0-9, - and _, got {task.name!r}")
    if len(task.name) > LONGEST_NAME:
        raise DataError(f"{where}: name is a folder's and has {LONGEST_NAME} letters at most, got {len(task.name)}")
    for field, known in (("metrics", METRICS[task.kind]), ("controls", CONTROLS[task.kind]), ("groups", GROUPS)):
        _check_known(getattr(task, field), known, f"{where}: {field}")
    how = [name for name in ("decoding", "likelihood", "perplexity") if getattr(task, name) is not None]
    if len(how) != 1 or (how == ["perplexity"]) != (task.kind == "text"):
        wanted = "perplexity" if task.kind == "text" else "decoding or likelihood"
        raise DataError(f"{where}: a {task.kind} task needs {wanted}, got {' and '.join(how) or 'none'}")
    _check_numbers(task, where)
    if not task.metrics:
        raise DataError(f"{where}: metrics is empty; name one of {', '.join(METRICS[task.kind])}")
    if task.kind == "text":
        needed = (CONTROLS["text"],)
    else:
        needed = (IMAGE_CONTROLS, tuple(name for name in PRIORS if name in CONTROLS[task.kind]))
    for kinds in needed:
        if not set(kinds) & set(task.controls):
            raise DataError(f"{where}: a score needs controls beside it; name at least one of {', '.join(kinds)}")
    return task


def _check_numbers(task: Task, where: str) -> None:
    parts = {"decoding": task.decoding, "perplexity": task.perplexity}
    for part, settings in parts.items():
        for name, value in vars(settings).items() if settings else ():
            if value < 1:
                raise DataError(f"{where}: {part}.{name} must be at least 1, got {value}")
    if task.perplexity and task.perplexity.stride >= task.perplexity.window:
        raise DataError(f"{where}: perplexity.stride must be less than its window, got {task.perplexity.stride}")
    if task.likelihood and task.likelihood.choices != (ANSWERS,) and len(set(task.likelihood.choices)) < 2:
        raise DataError(f"{where}: likelihood.choices must be two different answers at least, or [{ANSWERS}]")
    if task.likelihood and (task.kind != "question" or not all(map(str.strip, task.likelihood.choices))):
        raise DataError(f"{where}: likelihood is for question tasks, and none of its choices may be empty")


def _check_known(values: Any, known: Iterable[str], where: str) -> None:
    known = list(known)
    for value in values if isinstance(values, tuple) else (values,):
        if value not in known:
            raise DataError(f"{where} cannot be {visible(repr(value))}; {did_you_mean(value, known)}")
    if isinstance(values, tuple) and len(set(values)) < len(values):
        raise DataError(f"{where} names one twice; name each once")


def _built(kind: type, values: Any, where: str) -> Any:
    """Builds a dataclass from a mapping; fields are strings, counts, lists of strings, or such dataclasses."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: must be names with values, got {type(values).__name__}; see docs/evaluation.md")
    known = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in known:
            raise DataError(f"{where}: unknown {visible(repr(name))}; {did_you_mean(name, known)}")
    if missing := [name for name, field in known.items() if field.default is MISSING and name not in values]:
        raise DataError(f"{where}: {missing[0]} is missing; see docs/evaluation.md")
    parts = {"decoding": Decoding, "likelihood": Likelihood, "perplexity": Perplexity}
    built = {}
    for name, value in values.items():
        place, wanted = f"{where}: {name}", known[name].type
        if name in parts:
            built[name] = _built(parts[name], value, place)
        elif wanted == tuple[str, ...]:
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise DataError(f"{place} must be a list of strings, got {visible(repr(value))} (quote yes and no)")
            built[name] = tuple(value)
        elif isinstance(value, bool) or not isinstance(value, int if wanted is int else str):
            raise DataError(f"{place} must be {'a whole number' if wanted is int else 'a string'}, got {value!r:.80}")
        else:
            if choices := get_args(wanted):
                _check_known(value, choices, place)
            built[name] = value
    return kind(**built)
