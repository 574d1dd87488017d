"""Runs tasks with a model, and writes a result folder: predictions of the model and its controls, and their scores."""

import io
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from arlow_vl.data.images import CachedImages
from arlow_vl.data.sample_dataset import PlacedImage
from arlow_vl.data.stratified import stratified_places
from arlow_vl.data.text_files import shown_source
from arlow_vl.data.trained_prompts import read_trained_prompts
from arlow_vl.errors import DataError
from arlow_vl.evaluation.numbers import legend
from arlow_vl.evaluation.tasks import perplexity, predictions
from arlow_vl.evaluation.tasks.answering import Asker, check_controls, run_task
from arlow_vl.evaluation.tasks.items import PriorData, open_samples, read_items, read_training, share_images
from arlow_vl.evaluation.tasks.measures import check_references
from arlow_vl.evaluation.tasks.overlap import note_overlaps
from arlow_vl.evaluation.tasks.places import place_of
from arlow_vl.evaluation.tasks.predictions import PredictionFile
from arlow_vl.evaluation.tasks.scoring import score_task
from arlow_vl.evaluation.tasks.table import format_scores, shown_in
from arlow_vl.evaluation.tasks.task import OF_FEATURES, Task, load_task, refuse_one_name_twice, shipped_tasks
from arlow_vl.models.arlow.chat_arlow import render_chat
from arlow_vl.models.folder_files import hash_model
from arlow_vl.models.open_model import PRECISIONS, open_model
from arlow_vl.printing import number_of, print_line, visible
from arlow_vl.progress import ProgressLine
from arlow_vl.stopping import AGAIN, note_when_stopped
from arlow_vl.versions import version_of
from vision.features import FeatureCache, encoder_fingerprint
from vision.whole_files import sha256_of_file


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of a command that evaluates tasks."""

    model: Path
    data: str | Path
    output: Path
    features: Path
    """Folder of the encoder's cached features."""
    features_dtype: str = "float16"
    training: str | None = None
    """Source of text priors; None: the one that each task names."""
    device: str = "auto"
    precision: str | None = None
    """dtype of the model; None: that of the weights."""
    batch_size: int = 64
    limit: int | None = None
    """Number of items of each task, one at random of each equal part of the set; None: all."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Paths of tasks' YAMLs, by the task's name; shipped tasks need none."""


@dataclass(frozen=True)
class Prepared:
    """A task whose data have been read and whose result folder has been opened."""

    task: Task
    folder: Path
    items: Sequence[Any]
    training: PriorData
    facts: dict[str, Any]
    """Entries of metrics.json about how the predictions were made."""

    @property
    def total(self) -> int:
        """Number of predictions of all systems."""
        return len(self.items) * (1 + len(self.task.controls))

    def keep(self, system: str) -> PredictionFile:
        return PredictionFile(self.folder, system, [item.id for item in self.items])


def evaluate_tasks(tasks: Sequence[Task], run: EvaluationOptions) -> dict[str, dict[str, Any]]:
    """Runs and scores all tasks, prints their tables, and returns the contents of their metrics.json by task.

    A folder that holds a part of the predictions is resumed.

    Raises:
        DataError: data are missing or cannot be used, or a folder holds another run's predictions.
        CheckpointError: the model folder cannot be used, or not for one of the tasks.
    """
    refuse_one_name_twice(tasks)
    with predictions.lock(run.output):
        return _evaluate(tasks, run)


def _evaluate(tasks: Sequence[Task], run: EvaluationOptions) -> dict[str, dict[str, Any]]:
    is_text = [task.kind == "text" for task in tasks]
    opened = open_model(run.model, device=run.device, precision=run.precision, needs_images=not all(is_text))
    model, processor, tokenizer = opened.model, opened.processor, opened.tokenizer
    run = replace(run, device=str(model.device))
    model_sha256 = hash_model(run.model)
    prepared = [prepare(task, run, model, tokenizer, model_sha256) for task in tasks]
    note_overlaps(prepared, run.model, run.training)
    asker = make_asker([one for one in prepared if one.task.kind != "text"], run, model, processor, tokenizer)
    total, done = sum(one.total for one in prepared), 0
    progress = ProgressLine("evaluate", "predictions")

    def advance(number: int) -> None:
        nonlocal done
        done += number
        if number:
            progress(done, total)

    results = {}
    with note_when_stopped(lambda: f"{run.output} holds {done:,} of {number_of(total, 'prediction')}, and {AGAIN}"):
        for one in prepared:
            if one.task.kind == "text":
                perplexity.run_text_task(one.task, one.items, model, tokenizer, run.batch_size, one.keep, advance)
            else:
                run_task(one.task, one.items, one.training.items, asker, one.keep, advance)
            results[one.task.name] = score(one.folder, one.task, one.facts | describe(run, model, one, tokenizer))
    for result in results.values():
        print(f"\n{format_scores(result)}")
    print(f"\n{legend(map(shown_in, results.values()))}")
    return results


def score(folder: Path, task: Task, facts: dict[str, Any]) -> dict[str, Any]:
    """Scores the predictions of a folder and writes metrics.json."""
    systems = predictions.read_systems(folder, task.controls)
    files = {name: sha256_of_file(folder / name / predictions.PREDICTIONS) for name in systems}
    result = {"task": asdict(task), **facts, "predictions": files, "scores": score_task(task, systems)}
    predictions.write_json(folder / predictions.METRICS, result)
    return result


def prepare(task: Task, run: EvaluationOptions, model: Any, tokenizer: Any, model_sha256: str) -> Prepared:
    """Reads a task's data and opens its result folder."""
    place, training = place_of(task, run.data), PriorData()
    everything: Sequence[Any]
    if task.kind == "text":
        perplexity.check_window(task, model)
        everything = perplexity.read_documents(place.source, tokenizer)
        items, data_sha256 = drawn(everything, run.limit), perplexity.hash_documents(place.source)
    else:
        samples = open_samples(task, place)
        everything, data_sha256 = read_items(task, samples), samples.fingerprint
        check_length(task, model)
        check_references(task.metrics, [(item.id, item.references) for item in everything])
        training = read_training(task, run.data, run.training)
        items = drawn(everything, run.limit)
        check_controls(task, items, training.items)
    prompts = read_trained_prompts(run.model)
    otherwise = prompts.describe_difference(task.kind, task.instruction) if prompts else ""
    if otherwise:
        print_line(f"warning: {task.name} is {otherwise}")
    shown = "document" if task.kind == "text" else "image group" if share_images(items) else "image"
    facts: dict[str, Any] = {
        "task_sha256": task.sha256,
        "model": {"path": str(run.model), "sha256": model_sha256},
        "data": {**asdict(place), "sha256": data_sha256, "items": len(items)},
        "shown": shown,
        "training": {"path": training.source and shown_source(training.source), "sha256": training.sha256},
        "overlap": {},
        "asked_otherwise": otherwise,
        "precision": str(model.dtype).removeprefix("torch."),
    }
    identity = {"task": task.sha256, "model": model_sha256, "data": data_sha256, "training": training.sha256}
    identity |= {"items": len(items), "precision": facts["precision"]}
    if len(items) < len(everything):
        identity["choice"] = "one item of each part"  # earlier versions took every k-th
    if task.kind != "text":
        identity["features"] = facts["features_dtype"] = run.features_dtype
    folder = run.output / task.name
    settings = {"task": asdict(task), "model": str(run.model), "data": asdict(place), "training": training.source}
    made_with = {"device": device_name(torch.device(run.device)), "batch_size": run.batch_size}
    facts["made_with"] = held = predictions.start(folder, identity, settings, made_with)
    if len(held) > 1:
        devices = ", then ".join(f"{one['device']} in batches of {one['batch_size']}" for one in held)
        print_line(f"warning: {task.name} is answered on {devices}, whose rounding may differ")
    return Prepared(task, folder, items, training, facts)


def drawn(items: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """Returns `limit` of the items, drawn by `stratified_places`; None: all."""
    return items if limit is None else [items[place] for place in stratified_places(len(items), limit)]


def check_length(task: Task, model: Any) -> None:
    """Raises DataError if an answer alone may fill the model's positions."""
    positions = model.config.get_text_config().max_position_embeddings
    if task.decoding and task.decoding.max_new_tokens >= positions:
        raise DataError(
            f"task {task.name} lets the model write {number_of(task.decoding.max_new_tokens, 'token')} and it has "
            f"{positions:,} positions, prompt included; copy the task and lower decoding.max_new_tokens"
        )


def make_asker(prepared: Sequence[Prepared], run: EvaluationOptions, model: Any, processor: Any, tokenizer: Any) -> Any:
    """Encodes every image of the tasks once, into the cache, and returns the asker; None if no task has images.

    Raises:
        DataError: an image cannot be used.
    """
    if not prepared:
        return None
    transform = processor.image_processor.transform
    colour = tuple(round(255 * mean) for mean in transform.mean)
    blank = blank_image(model.config.vision_config.input_size, colour)
    images = {blank.sha256: blank}
    for one in prepared:
        needed = [*one.items, *(one.training.items if set(OF_FEATURES) & set(one.task.controls) else ())]
        images |= {image.sha256: image for item in needed for image in item.images}
    encoder = model.model.vision
    cache = FeatureCache(run.features, encoder_fingerprint(encoder, transform), dtype=PRECISIONS[run.features_dtype])
    missing = {sha256: image for sha256, image in images.items() if sha256 not in cache}
    read = ((sha256, image.read_image()) for sha256, image in missing.items())
    progress = ProgressLine("encoder features", "images")
    refused = cache.fill(read, encoder, transform, count=len(missing), on_progress=progress)
    if refused:
        sha256, reason = next(iter(refused.items()))
        count = number_of(len(refused), "image")
        raise DataError(
            f"{count} cannot be used, that of {visible(images[sha256].key)} first ({reason}); "
            "scores skip no image: repair the data (`arlow data verify` lists them)"
        )
    shown = CachedImages(cache, lambda image: image.sha256)
    return Asker(model, tokenizer, shown, blank.sha256, run.batch_size)


def blank_image(size: Sequence[int], colour: tuple[int, ...]) -> PlacedImage:
    """Returns an image of one colour, (height, width) in pixels; of the mean colour, it is all zeros to the encoder."""
    file = io.BytesIO()
    height, width = size
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return PlacedImage(file.getvalue(), "the blank image")


def describe(run: EvaluationOptions, model: Any, one: Prepared, tokenizer: Any) -> dict[str, Any]:
    """Describes for readers how the predictions were made; what determines them is also in run.json."""
    example = one.items[0]
    prompt = render_chat(tokenizer, example.messages, add_generation_prompt=True) if one.task.kind != "text" else ""
    openings = model.gate_openings() if hasattr(model, "gate_openings") else {}
    return {
        "command": command_line(run, one.task),
        "prompt": prompt,
        "prior": "training data" if one.training.items else "the other images of the set",
        "versions": {
            "python": platform.python_version(),
            **{package: version_of(package) for package in ("arlow-vl", "torch", "transformers", "timm")},
        },
        "gates": {
            f"layer {layer}, {part}": value
            for layer, pair in openings.items()
            for part, value in zip(("attention", "MLP"), pair, strict=True)
        },
    }


def device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name})"


def command_line(run: EvaluationOptions, task: Task) -> str:
    """Returns the shell command that makes these predictions again."""
    is_shipped = task.name in shipped_tasks() and load_task(task.name) == task
    named = task.name if is_shipped else run.files.get(task.name, f"{task.name}.yaml")
    options = {"model": run.model, "task": named, "data": shown_source(run.data)}
    options |= {"training": run.training and shown_source(run.training), "precision": run.precision, "limit": run.limit}
    options |= {"device": run.device, "batch-size": run.batch_size, "features-dtype": run.features_dtype}
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["arlow", "evaluate", *words, "--output", str(run.output)])
