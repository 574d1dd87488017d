"""The metrics that a task may name.

A metric is two pure functions: `sums` turns each prediction into a row of numbers, `value` a sum of rows into a score.
So the score of all samples, of a group, of all but one image, and of a thousand resamples come from one array:

    sums = metric_sums({"vqa": METRICS["vqa"]}, predictions)["vqa"]     # (predictions, columns)
    METRICS["vqa"].value(sums.sum(axis=0))                              # the score
    METRICS["vqa"].value(weights @ sums)                                # of every resample

Several metrics may share `sums`; `metric_sums` then computes them once. METEOR and SPICE are left out: both need Java
and large files, METEOR WordNet and a paraphrase table, SPICE a scene-graph parser.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from arlow_vl.data.scenes.grammar import parse_caption
from arlow_vl.errors import DataError
from arlow_vl.evaluation.metrics import pope
from arlow_vl.evaluation.metrics.answers import anls, exact_match, squad_exact_match, squad_f1
from arlow_vl.evaluation.metrics.captions import bleu, caption_scores
from arlow_vl.evaluation.metrics.chair import Inventory, chair_counts
from arlow_vl.evaluation.metrics.ngrams import ORDERS
from arlow_vl.evaluation.metrics.perplexity import bits_per_byte, perplexity
from arlow_vl.evaluation.metrics.scenes import PARTS, scene_points
from arlow_vl.evaluation.metrics.sums import Values, mean, ratio, ratio_or_0
from arlow_vl.evaluation.metrics.vqa import vqa_accuracy, vqa_exact_match
from arlow_vl.printing import visible


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's output for one sample, with its references; fields that do not apply to the task are None."""

    id: str
    """Name of the sample, unique within a task."""
    image: str
    """Name of the image, or of the document for text; samples of one image are resampled together."""
    text: str | None = None
    """The text that the model wrote."""
    references: Sequence[str] | None = None
    """Correct captions or answers; for VQA one per annotator, empty ones included; for POPE yes or no."""
    objects: Sequence[str] | None = None
    """Things in the image, by their names in the inventory (CHAIR)."""
    log_probability: float | None = None
    """Sum over all scored tokens, in nats (perplexity)."""
    num_tokens: int | None = None
    """Number of scored tokens."""
    num_bytes: int | None = None
    """Number of UTF-8 bytes of the text."""

    @property
    def scored(self) -> tuple[str, Sequence[str]]:
        """The text and its references; `metric_sums` has checked that they are there."""
        assert self.text is not None and self.references is not None
        return self.text, self.references


Sums = Callable[[Sequence[Prediction]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as two functions, with how its score is printed."""

    title: str
    """Name in tables and results, unique among the metrics."""
    needs: tuple[str, ...]
    """Fields of `Prediction` that must not be None."""
    sums: Sums
    """Returns (predictions, columns) float64."""
    value: Callable[[np.ndarray], Values]
    """Turns sums of rows, (..., columns), into scores, (...); NaN where there is nothing to score."""
    most: float | None = 1.0
    """The largest possible score; None: there is none."""
    is_share: bool = False
    """True: printed in per cent."""


def metric_sums(metrics: Mapping[str, Metric], predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
    """Computes the sums of each metric, (predictions, columns).

    Raises:
        DataError: there are no predictions, an id occurs twice, or a prediction lacks a field that a metric needs.
    """
    if not predictions:
        raise DataError("there are no predictions to score; run the task first")
    id_, times = Counter(prediction.id for prediction in predictions).most_common(1)[0]
    if times > 1:
        raise DataError(f"sample {visible(id_)} has {times} predictions; keep one of them")
    for name, metric in metrics.items():
        refuse_missing(name, metric, predictions)
    rows = {sums: sums(predictions) for sums in {metric.sums: None for metric in metrics.values()}}
    return {name: rows[metric.sums] for name, metric in metrics.items()}


def refuse_missing(name: str, metric: Metric, predictions: Sequence[Prediction]) -> None:
    for prediction in predictions:
        for field in metric.needs:
            value = getattr(prediction, field)
            if value is None or (field == "references" and not value):
                raise DataError(
                    f"{name} needs {field.replace('_', ' ')}, and sample {visible(prediction.id)} has none; "
                    "add them to the task's data, or take the metric out of the task"
                )


def _caption_sums(predictions: Sequence[Prediction]) -> np.ndarray:
    scored = {p.id: p.scored for p in predictions}
    references = {id_: [text for text in of[1] if text] or of[1] for id_, of in scored.items()}  # of those who answered
    scores = caption_scores({id_: of[0] for id_, of in scored.items()}, references)
    points = (scores.cider_per_sample, scores.plain_cider_per_sample, scores.rouge_per_sample, [1.0] * len(predictions))
    return np.column_stack([*points, scores.bleu_counts])


def _bleu_value(sums: np.ndarray, *, order: int) -> Values:
    return np.where(sums[..., 3] > 0, bleu(sums[..., 4:])[..., order], np.nan)


def _mean_of(sums: np.ndarray, *, column: int, samples: int) -> Values:
    return ratio(sums[..., column], sums[..., samples])


def _false_of(sums: np.ndarray, *, column: int, named: int, samples: int) -> Values:
    """Returns the share of named things that are false; 0 where captions name nothing."""
    return ratio_or_0(sums[..., column], sums[..., named], sums[..., samples])


def _vqa_sums(predictions: Sequence[Prediction]) -> np.ndarray:
    rows = [
        (
            vqa_accuracy(*p.scored, rule="official"),
            vqa_accuracy(*p.scored, rule="official", empty_may_match=True),
            vqa_accuracy(*p.scored, rule="normalised both"),
            1.0,
        )
        for p in predictions
    ]
    return np.array(rows)


def _answer_sums(rule: Callable[[str, Sequence[str]], float]) -> Sums:
    return lambda predictions: np.array([(rule(*p.scored), 1.0) for p in predictions])


def _pope_sums(predictions: Sequence[Prediction]) -> np.ndarray:
    scored = [p.scored for p in predictions]
    for p, (_, references) in zip(predictions, scored, strict=True):
        if references[0].lower() not in ("yes", "no"):
            raise DataError(
                f"sample {visible(p.id)} has the reference {visible(repr(references[0]))}; POPE takes yes or no"
            )
    return pope.pope_counts([text for text, _ in scored], [references[0] for _, references in scored])


def _scene_sums(predictions: Sequence[Prediction]) -> np.ndarray:
    """Reads the scenes out of the references: a caption of the grammar describes its scene in full (docs/scenes.md)."""
    scenes = []
    for p in predictions:
        scene = parse_caption(p.scored[1][0])
        if scene is None:
            raise DataError(f"sample {visible(p.id)} is no scene: its caption is no sentence of docs/scenes.md")
        scenes.append(scene)
    return scene_points([p.scored[0] for p in predictions], scenes).reshape(len(scenes), -1)


def _likelihood_sums(predictions: Sequence[Prediction]) -> np.ndarray:
    return np.array([(p.log_probability, p.num_tokens, p.num_bytes) for p in predictions], dtype=np.float64)


_said = partial(Metric, needs=("text", "references"))
_share = partial(_said, is_share=True)
_captions, _vqa = partial(_said, sums=_caption_sums), partial(_share, sums=_vqa_sums)
_pope, _scenes = partial(_share, sums=_pope_sums), partial(_share, sums=_scene_sums)
_likelihood = partial(
    Metric,
    needs=("log_probability", "num_tokens", "num_bytes"),
    sums=_likelihood_sums,
    most=None,
)

METRICS: Mapping[str, Metric] = {
    "cider_d": _captions(title="CIDEr-D", value=partial(_mean_of, column=0, samples=3), most=10.0),
    "cider": _captions(title="CIDEr", value=partial(_mean_of, column=1, samples=3), most=10.0),
    "rouge_l": _captions(title="ROUGE-L", value=partial(_mean_of, column=2, samples=3)),
    **{
        f"bleu_{order + 1}": _captions(title=f"BLEU-{order + 1}", value=partial(_bleu_value, order=order))
        for order in range(ORDERS)
    },
    "vqa": _vqa(title="accuracy", value=partial(_mean_of, column=0, samples=3)),
    "vqa_with_empty": _vqa(title="accuracy, nothing may match", value=partial(_mean_of, column=1, samples=3)),
    "vqa_normalised": _vqa(title="accuracy, normalised both", value=partial(_mean_of, column=2, samples=3)),
    "vqa_exact_match": _share(title="exact match", sums=_answer_sums(vqa_exact_match), value=mean),
    "exact_match": _share(title="exact match, case and space apart", sums=_answer_sums(exact_match), value=mean),
    "squad_exact_match": _share(title="exact match of words", sums=_answer_sums(squad_exact_match), value=mean),
    "squad_f1": _share(title="F1 of words", sums=_answer_sums(squad_f1), value=mean),
    "anls": _share(title="ANLS", sums=_answer_sums(anls), value=mean),
    "pope_accuracy": _pope(title="POPE accuracy", value=pope.accuracy),
    "pope_precision": _pope(title="precision", value=pope.precision),
    "pope_recall": _pope(title="recall", value=pope.recall),
    "pope_f1": _pope(title="F1", value=pope.f1),
    "pope_yes_share": _pope(title="share of yes", value=pope.yes_share),
    "pope_neither_share": _pope(title="neither yes nor no", value=pope.neither_share),
    **{
        f"scene_{part.replace(' ', '_')}": _scenes(
            title=part,
            value=partial(_mean_of, column=2 * place, samples=2 * place + 1),
        )
        for place, part in enumerate(PARTS[:-1])
    },
    f"scene_{PARTS[-1].replace(' ', '_')}": _scenes(
        title=PARTS[-1], value=partial(_false_of, column=-2, named=-1, samples=1)
    ),
    "perplexity": _likelihood(title="perplexity", value=perplexity),
    "bits_per_byte": _likelihood(title="bits per byte", value=bits_per_byte),
}
"""All metrics by name, except CHAIR's, which need an inventory (`chair_metrics`)."""


def chair_metrics(inventory: Inventory) -> dict[str, Metric]:
    """Returns CHAIR's metrics for an inventory.

    Things that reference captions name count as in the image, as in the official code.
    """

    def sums(predictions: Sequence[Prediction]) -> np.ndarray:
        rows = []
        for p in predictions:
            of_references = (thing for caption in p.references or () for thing in inventory.named(caption))
            counts = chair_counts(p.text or "", {*(p.objects or ()), *of_references}, inventory)
            rows.append((len(counts.named), len(counts.false), bool(counts.false), 1, counts.found, counts.in_image))
        return np.array(rows, dtype=np.float64)

    chair = partial(Metric, needs=("text", "objects"), sums=sums, is_share=True)
    return {
        "chair_i": chair(title="CHAIR, things", value=partial(_false_of, column=1, named=0, samples=3)),
        "chair_s": chair(title="CHAIR, captions", value=partial(_mean_of, column=2, samples=3)),
        "chair_recall": chair(title="things found", value=partial(_mean_of, column=4, samples=5)),
    }
