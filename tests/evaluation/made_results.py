"""Small data with images, and result folders of tasks on them, for the tests of comparisons and reports."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from arlow_vl.evaluation.tasks import predictions
from arlow_vl.evaluation.tasks.evaluate import score
from arlow_vl.evaluation.tasks.items import Item, open_samples, read_items
from arlow_vl.evaluation.tasks.places import place_of
from arlow_vl.evaluation.tasks.predictions import MODEL, PredictionFile, PredictionRow
from arlow_vl.evaluation.tasks.task import Task, load_task
from tests.outside_data import tar_of

CAPTIONS, QUESTIONS = "captions-test-known", "easy-vqa"
THINGS = [f"a {colour} {thing}" for thing in ("dog", "cat", "boat") for colour in ("red", "blue", "small", "big")]
COLOURS = ["red", "blue", "teal"]

Says = Mapping[str, str | Callable[[Item], str]]
"""What each system says: one thing always, or of each item."""


def image_bytes(number: int) -> bytes:
    """A plain image as PNG, JPEG or WebP, in another colour for each number."""
    file = io.BytesIO()
    Image.new("RGB", (8 + number, 8), (20 * number, 90, 90)).save(file, ("PNG", "JPEG", "WEBP")[number % 3])
    return file.getvalue()


def write_data(folder: Path, image_of: Callable[[int], bytes] = image_bytes) -> Path:
    """Twelve images with a caption each, and three with two questions each."""
    captions, questions = [], []
    for number, thing in enumerate(THINGS):
        key = f"image-{number:02}"
        captions += [(f"{key}.png", image_of(number)), (f"{key}.txt", thing.encode())]
    for number, colour in enumerate(COLOURS):
        asked = [{"question": "what color is it?", "answer": colour, "kind": "other"}]
        asked.append({"question": "is it there?", "answer": "yes", "kind": "yes/no"})
        key = f"shape-{number}"
        about = json.dumps({"questions": asked, "source": "drawn", "license": "CC0"}).encode()
        questions += [(f"{key}.png", image_of(number)), (f"{key}.json", about), (f"{key}.txt", b"a shape")]
    for name, members in (("captions/test-known", captions), ("easy-vqa/test", questions)):
        path = folder / f"{name}-000000.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tar_of(*members))
    return folder


def answer(item: Item) -> str:
    return item.answers[0]


def but_teal(item: Item) -> str:
    return "yes" if item.answers == ("teal",) else answer(item)


def write_results(folder: Path, data: Path, name: str, says: Says, **changes: Any) -> dict[str, Any]:
    """As `arlow evaluate` leaves the shipped task of that name; `changes` are those of what metrics.json tells.

    Who is not named in `says` says "yes" to a question and "a tree" of an image, and the model what is right.
    """
    task = load_task(name)
    place = place_of(task, data)
    samples = open_samples(task, place)
    items = read_items(task, samples)
    usual: Says = {MODEL: answer} | dict.fromkeys(task.controls, "a tree" if task.kind == "caption" else "yes")
    for system, said in (usual | says).items():
        kept = PredictionFile(folder / name, system, [item.id for item in items])
        kept.add(_row(item, said(item) if callable(said) else said, system) for item in items)
        kept.finish()
    facts = _facts(task) | {"data": {**asdict(place), "sha256": samples.fingerprint, "items": len(items)}} | changes
    predictions.write_json(folder / name / predictions.RUN, {"task": task.sha256})
    return score(folder / name, task, facts)


def _row(item: Item, output: str, system: str) -> PredictionRow:
    return PredictionRow(
        id=item.id,
        image=item.image,
        prompt=item.question,
        output=output,
        references=list(item.references),
        kind=item.kind,
        log_probability=-1.0 - len(output) if system == MODEL else None,
    )


def _facts(task: Task) -> dict[str, Any]:
    return {
        "task_sha256": task.sha256,
        "model": {"path": "runs/gone/hf", "sha256": "ab" * 32},
        "training": {"path": None, "sha256": None},
        "overlap": {},
        "precision": "float32",
        "batch_size": 8,
        "command": f"arlow evaluate --model runs/gone/hf --task {task.name}",
        "prompt": "<|im_start|>user\n<image>",
        "prior": "the other images of the set",
        "device": "cpu (x86_64)",
        "versions": {"torch": "2"},
        "gates": {"layer 1, attention": -0.25, "layer 1, MLP": 0.5},
    }
