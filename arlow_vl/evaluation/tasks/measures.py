"""Predictions as numbers: for each metric statistics of every item, whose sums give the metric of any set of items."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from arlow_vl.data.scenes.grammar import nouns_named, parse_caption
from arlow_vl.errors import DataError
from arlow_vl.evaluation.metrics import pope
from arlow_vl.evaluation.metrics.captions import ORDERS, bleu, caption_scores
from arlow_vl.evaluation.metrics.scenes import SLOTS, scene_scores
from arlow_vl.evaluation.metrics.vqa import Rule, normalise_answer, vqa_scores
from arlow_vl.evaluation.statistics import Metric, mean
from arlow_vl.evaluation.tasks.predictions import Prediction
from arlow_vl.printing import visible

Rows = Sequence[Prediction]


class Measure(NamedTuple):
    """A metric of one system."""

    statistics: Float[np.ndarray, "items statistics"]
    metric: Metric
    is_share: bool
    """Printed as per cent."""


def measure(name: str, rows: Rows) -> dict[str, Measure]:
    """A metric of a task, or its parts by their names. Raises DataError for an item without a reference."""
    bare = next((row.id for row in rows if not row.references), None)
    if bare is not None and name not in ("perplexity", "bits per byte"):
        raise DataError(f"item {visible(repr(bare))} has no reference, so {name} cannot be computed; mend the data")
    return MEASURES[name](rows)


def _ciders(rows: Rows) -> dict[str, Measure]:
    scores = _captions(rows).cider_per_sample
    return {"CIDEr-D": Measure(_with_ones(scores), mean, is_share=False)}


def _bleus(rows: Rows) -> dict[str, Measure]:
    counts = _captions(rows).bleu_counts
    return {
        f"BLEU-{order + 1}": Measure(counts, lambda sums, order=order: bleu(sums)[..., order], is_share=False)
        for order in range(ORDERS)
    }


def _captions(rows: Rows):
    return caption_scores({row.id: row.output for row in rows}, {row.id: row.references for row in rows})


def _scenes(rows: Rows) -> dict[str, Measure]:
    """Captions of scenes (docs/scenes.md); a caption of the grammar tells its scene in full, so references do."""
    names = ("whole scene", *SLOTS, "parts swapped", "named falsely")
    points = {name: np.zeros((len(rows), 2)) for name in names}
    for place, row in enumerate(rows):
        scene = parse_caption(row.references[0])
        if scene is None:
            raise DataError(f"item {visible(repr(row.id))} is no scene: its caption is no sentence of docs/scenes.md")
        scores, named = scene_scores([row.output], [scene]), len(nouns_named(row.output))
        counts = dict.fromkeys(("thing", "colour", "count"), len(list(scene.groups)))
        shares = {"whole scene": (scores.whole, 1), "parts swapped": (scores.swapped, 1)}
        shares |= {"named falsely": (scores.named_falsely, named)}
        shares |= {slot: (share, counts.get(slot, 1)) for slot, share in scores.slots.items()}
        for name, (share, count) in shares.items():
            points[name][place] = share * count, count
    kept = (name for name in names if name == "named falsely" or points[name][:, 1].any())
    return {name: Measure(points[name], mean, is_share=True) for name in kept}


def _vqa(rows: Rows, rule: Rule = "official", name: str = "accuracy") -> dict[str, Measure]:
    scores = vqa_scores(
        [row.output for row in rows], [row.references for row in rows], [row.kind for row in rows], rule=rule
    )
    return {name: Measure(_with_ones(scores.per_sample), mean, is_share=True)}


def _vqa_normalised(rows: Rows) -> dict[str, Measure]:
    return _vqa(rows, "normalised both", "accuracy, normalised both")


def _exact(rows: Rows) -> dict[str, Measure]:
    return {"exact match": Measure(_with_ones([float(is_exact(row)) for row in rows]), mean, is_share=True)}


def is_exact(row: Prediction) -> bool:
    """Equal to a reference after VQA's normalisation of both; nothing is no answer."""
    output = normalise_answer(row.output)
    return bool(output) and output in map(normalise_answer, row.references)


def _pope(rows: Rows) -> dict[str, Measure]:
    if odd := next((row for row in rows if row.references[0].lower() not in ("yes", "no")), None):
        raise DataError(
            f"item {visible(repr(odd.id))} has the reference {visible(repr(odd.references[0]))}; POPE takes yes or no"
        )
    counts = pope.pope_counts([row.output for row in rows], [row.references[0] for row in rows])
    metrics = {"accuracy": pope.accuracy, "precision": pope.precision, "recall": pope.recall, "F1": pope.f1}
    return {
        name: Measure(counts, metric, is_share=True)
        for name, metric in {**metrics, "share of yes": pope.yes_share}.items()
    }


def _perplexity(rows: Rows) -> dict[str, Measure]:
    return {"perplexity": Measure(_nats_over(rows, "tokens"), lambda sums: np.exp(mean(sums)), is_share=False)}


def _bits(rows: Rows) -> dict[str, Measure]:
    return {"bits per byte": Measure(_nats_over(rows, "bytes"), lambda sums: mean(sums) / math.log(2), is_share=False)}


def _nats_over(rows: Rows, unit: str) -> Float[np.ndarray, "items 2"]:
    if odd := next((row for row in rows if row.log_probability is None or not getattr(row, unit)), None):
        raise DataError(f"document {visible(repr(odd.id))} has no log-probability or no {unit}; evaluate it again")
    return np.array([[-(row.log_probability or 0.0), getattr(row, unit)] for row in rows], np.float64)


def _with_ones(points: Sequence[float]) -> Float[np.ndarray, "items 2"]:
    return np.stack([np.array(points, np.float64), np.ones(len(points))], axis=1)


MEASURES = {
    "CIDEr-D": _ciders,
    "BLEU": _bleus,
    "scenes": _scenes,
    "vqa accuracy": _vqa,
    "vqa accuracy, normalised both": _vqa_normalised,
    "exact match": _exact,
    "POPE": _pope,
    "perplexity": _perplexity,
    "bits per byte": _bits,
}


def first_words(question: str) -> str:
    """The first two words of a question, which group it as VQA's types do: "how many", "what color"."""
    return " ".join(re.findall(r"[\w']+", question.lower())[:2])
