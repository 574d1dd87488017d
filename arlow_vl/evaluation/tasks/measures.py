"""The names by which a task asks for metrics of `metrics.registry`, and the metrics of its predictions."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from arlow_vl.errors import DataError
from arlow_vl.evaluation.metrics import registry
from arlow_vl.evaluation.metrics.ngrams import ORDERS
from arlow_vl.evaluation.metrics.vqa import vqa_exact_match
from arlow_vl.evaluation.tasks.predictions import PredictionRow
from arlow_vl.printing import visible

Rows = Sequence[PredictionRow]
_BLEU = tuple(f"bleu_{order + 1}" for order in range(ORDERS))
_SCENES = tuple(name for name in registry.METRICS if name.startswith("scene_"))
_VQA = ("vqa", "vqa_with_empty", "vqa_normalised")
_POPE = ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1", "pope_yes_share", "pope_neither_share")

NAMED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "caption": {
        "CIDEr-D": ("cider_d",),
        "CIDEr": ("cider",),
        "BLEU": _BLEU,
        "ROUGE-L": ("rouge_l",),
        "scenes": _SCENES,
    },
    "question": {
        "vqa accuracy": ("vqa",),
        "vqa accuracy, nothing may match": ("vqa_with_empty",),
        "vqa accuracy, normalised both": ("vqa_normalised",),
        "exact match": ("vqa_exact_match",),
        "exact match, case and space apart": ("exact_match",),
        "F1 of words": ("squad_f1",),
        "ANLS": ("anls",),
        "CIDEr-D": ("cider_d",),
        "POPE": _POPE,
    },
    "text": {"perplexity": ("perplexity",), "bits per byte": ("bits_per_byte",)},
}
"""Names that a task's YAML may list, by kind of task, with the metrics that each stands for."""


class Measure(NamedTuple):
    """A metric, with its sums for one system's predictions."""

    statistics: Float[np.ndarray, "items statistics"]
    metric: registry.Metric


def measure(names: Sequence[str], rows: Rows) -> dict[str, Measure]:
    """Measures the metrics that a task names, by title; one that no item is a sample of is left out (a slot of scenes).

    Raises:
        DataError: an item lacks a reference or log-probability that a metric needs.
    """
    metrics = {part: registry.METRICS[part] for part in _parts(names)}
    sums = registry.metric_sums(metrics, [_scored(row) for row in rows])
    return {
        metrics[part].title: Measure(of, metrics[part])
        for part, of in sums.items()
        if not np.isnan(metrics[part].value(of.sum(axis=0)))
    }


def check_references(names: Sequence[str], references: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Checks references, given as (id of the item, texts), before the model answers anything.

    VQA accuracy compares with all annotators but one and wants three matches: with two or three answers no prediction
    could score 1.

    Raises:
        DataError: a reference does not suit the metric, or an item has too few.
    """
    parts = _parts(names)
    unanswered = [registry.Prediction(id=of, image=of, text="", references=texts) for of, texts in references]
    registry.metric_sums({part: registry.METRICS[part] for part in (_POPE[0], _SCENES[0]) if part in parts}, unanswered)
    few = next(((of, len(texts)) for of, texts in references if len(texts) in (2, 3)), None)
    if few and any(part in parts for part in _VQA):
        raise DataError(
            f"sample {visible(few[0])} has {few[1]} answers, where VQA accuracy gives {(few[1] - 1) / 3:.0%} at most; "
            "name exact match instead, or give each question one answer, or four and more"
        )


def _parts(names: Sequence[str]) -> dict[str, None]:
    """Returns the metrics that the names stand for, in order; a dict serves as an ordered set."""
    meant = {name: parts for kind in NAMED.values() for name, parts in kind.items()}
    return dict.fromkeys(part for name in names for part in meant[name])


def _scored(row: PredictionRow) -> registry.Prediction:
    return registry.Prediction(
        id=row.id,
        image=row.image,
        text=row.output,
        references=row.references,
        log_probability=row.log_probability,
        num_tokens=row.tokens if row.bytes else None,  # bytes 0: a text that the tokenizer drops
        num_bytes=row.bytes or None,
    )


def titled(metric: str, *, is_share: bool) -> str:
    """Returns the title of a metric, with its scale unless that is 1."""
    scale = next((of.most for of in registry.METRICS.values() if of.title == metric and of.most), 1)
    return f"{metric}, %" if is_share else metric if scale == 1 else f"{metric}, {scale:g} at most"


def is_exact(row: PredictionRow) -> bool:
    """True if the output equals a reference after VQA's normalisation of both; an empty one never does."""
    return bool(vqa_exact_match(row.output, row.references))


def first_words(question: str) -> str:
    """Returns the first two words of a question, a group like VQA's question types: "how many", "what color"."""
    return " ".join(re.findall(r"[\w']+", question.lower())[:2])
