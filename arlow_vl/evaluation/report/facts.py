"""Describes how the predictions of a task were made, from metrics.json."""

from typing import Any

from arlow_vl.evaluation.tasks.results import Results
from arlow_vl.evaluation.tasks.task import Task

Fact = tuple[str, list[str]]
"""A label and its lines of text."""


def facts_of(results: Results) -> list[Fact]:
    """Lists the facts of a task. Raises KeyError or TypeError for a malformed metrics.json."""
    told, task = results.told, results.task
    facts = [("task", [task.name, f"SHA-256 {told['task_sha256']}"])]
    for name, path in (("model", "path"), ("data", "source"), ("training", "path")):
        if told[name][path]:
            label = "training data, for priors" if name == "training" else name
            facts.append((label, [str(told[name][path]), f"SHA-256 {told[name]['sha256']}"]))
    if told["prompt"]:
        facts.append(("the first prompt", [str(told["prompt"])]))
    made_with = told.get("made_with", [told])  # older files name a single device
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    return [
        *facts,
        ("how", [describe_decoding(task)]),
        ("priors come from", [str(told["prior"])]),
        ("device", [f"{one['device']}, {told['precision']}, batches of {one['batch_size']}" for one in made_with]),
        ("versions", [versions]),
        ("predictions", [f"{name} SHA-256 {sha256}" for name, sha256 in told["predictions"].items()]),
    ]


def describe_decoding(task: Task) -> str:
    parts: dict[str, Any] = {
        "decoding": task.decoding,
        "likelihood of": task.likelihood,
        "perplexity": task.perplexity,
    }
    name, part = next((name, part) for name, part in parts.items() if part is not None)
    method = "greedy" if name == "decoding" and part.num_beams == 1 else name
    return f"{method}: " + ", ".join(f"{field.replace('_', ' ')} {value}" for field, value in vars(part).items())
