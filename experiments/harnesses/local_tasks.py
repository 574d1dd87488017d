"""Writes small tasks on local files for the harnesses and for `arlow evaluate`.

questions.jsonl   id, image (a file), question, answer, choices (all answers of the set)
endings.jsonl     context, choices (four endings, one of which is the text's own), label
documents.jsonl   text
"""

import json
import random
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml

from arlow_vl.evaluation.tasks.evaluate import EvaluationOptions, evaluate_tasks
from arlow_vl.evaluation.tasks.items import open_samples, read_items
from arlow_vl.evaluation.tasks.places import place_of
from arlow_vl.evaluation.tasks.task import load_task

SAMPLES = Path(__file__).parents[2] / "tests" / "samples"
QUESTIONS = SAMPLES / "easy-vqa" / "test-*.tar"
TEXT = SAMPLES / "text" / "validation.jsonl"
LIMIT, MAX_NEW_TOKENS = 24, 6
WORDS_BEFORE, WORDS_ENDING, ENDINGS = 16, 6, 4
PASSAGE_WORDS, PASSAGES = WORDS_BEFORE + WORDS_ENDING, 40
DOCUMENT_WORDS = 700
"""Long enough to exceed the context of the demonstration's model."""
OURS = "easy-vqa"
"""The shipped task whose prompts the questions use."""


def write_local_tasks(folder: Path, ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Writes the files, with only the questions that have these ids, and returns the rows of each."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = [json.loads(line)["text"] for line in TEXT.read_text(encoding="utf-8").splitlines()]
    rows = {
        "questions": [row for row in _questions(folder / "images") if row["id"] in ids],
        "endings": _endings([words for text in documents for words in _passages(text, PASSAGE_WORDS)][:PASSAGES]),
        "documents": [{"text": " ".join(words)} for text in documents for words in _passages(text, DOCUMENT_WORDS)],
    }
    for name, of in rows.items():
        write_lines(folder / f"{name}.jsonl", of)
    return rows


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def evaluate_ours(model: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Returns the answers of `arlow evaluate` by id: under "questions" as generated, under "choices" the likeliest."""
    choices = sorted({row["answer"] for row in _questions(folder / "images")})
    ways = {
        "questions": {"decoding": {"max_new_tokens": MAX_NEW_TOKENS}},
        "choices": {"likelihood": {"choices": choices}},
    }
    tasks = [load_task(str(write_task(folder / f"{name}.yaml", how))) for name, how in ways.items()]
    results = folder / "results"
    options = EvaluationOptions(
        model=model, data=QUESTIONS.parent, output=results, features=folder / "features", limit=LIMIT
    )
    evaluate_tasks(tasks, options)
    return {name: _outputs(results / name / "model" / "predictions.jsonl") for name in ways}


def write_task(path: Path, how: dict[str, Any]) -> Path:
    """Writes the questions as a task of `arlow evaluate`."""
    values = {
        "name": path.stem,
        "title": "Questions of easy-VQA",
        "kind": "question",
        "data": QUESTIONS.name,
        "metrics": ["exact match"],
        "controls": ["shuffled", "most_frequent"],
    }
    path.write_text(yaml.safe_dump(values | how), encoding="utf-8")
    return path


def _outputs(path: Path) -> dict[str, str]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["output"] for row in rows}


def _questions(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    task = load_task(OURS)
    items = read_items(task, open_samples(task, place_of(task, QUESTIONS)))
    choices = sorted({item.answers[0] for item in items})
    rows = []
    for item in items:
        path = folder / f"{item.image}.png"
        path.write_bytes(item.images[0].read_image())
        row = {"id": item.id, "image": str(path), "question": item.question, "answer": item.answers[0]}
        rows.append(row | {"choices": choices})
    return rows


def _passages(text: str, size: int) -> list[list[str]]:
    """Splits a text into passages of `size` words; the rest is left out."""
    words = text.split()
    return [words[start : start + size] for start in range(0, len(words) - size + 1, size)]


def _endings(passages: list[list[str]]) -> list[dict[str, Any]]:
    """Returns passages without their endings, with this and other endings to choose from."""
    dice, rows = random.Random(0), []
    for passage in passages:
        others = dice.sample([other for other in passages if other is not passage], ENDINGS - 1)
        endings = [" ".join(one[WORDS_BEFORE:]) for one in (passage, *others)]
        order = dice.sample(range(ENDINGS), ENDINGS)
        choices = [endings[place] for place in order]
        rows.append({"context": " ".join(passage[:WORDS_BEFORE]), "choices": choices, "label": order.index(0)})
    return rows
