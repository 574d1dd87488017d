"""Describes how the predictions of a task were made, from metrics.json."""

from typing import Any

from arlow_vl.evaluation.tasks.results import Results
from arlow_vl.evaluation.tasks.task import Task

Fact = tuple[str, list[str]]
"""A label and its lines of text."""


def facts_of(results: Results) -> list[Fact]:
    """Lists the facts of a task. Raises KeyError or TypeError for a malformed metrics.json."""
    metrics, task = results.metrics_json, results.task
    facts = [("task", [task.name, f"SHA-256 {metrics['task_sha256']}"])]
    for name, path in (("model", "path"), ("data", "source"), ("training", "path")):
        if metrics[name][path]:
            label = "training data, for priors" if name == "training" else name
            facts.append((label, [str(metrics[name][path]), f"SHA-256 {metrics[name]['sha256']}"]))
    if metrics["prompt"]:
        facts.append(("the first prompt", [str(metrics["prompt"])]))
    made_with = metrics.get("made_with", [metrics])  # older files name a single device
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    return [
        *facts,
        ("how", [describe_decoding(task)]),
        ("priors come from", [str(metrics["prior"])]),
        ("device", [f"{one['device']}, {metrics['precision']}, batches of {one['batch_size']}" for one in made_with]),
        ("versions", [versions]),
        ("predictions", [f"{name} SHA-256 {sha256}" for name, sha256 in metrics["predictions"].items()]),
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
