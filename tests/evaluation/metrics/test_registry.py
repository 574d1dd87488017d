"""Every metric by its name: what it needs, its sums, its value."""

import math
from dataclasses import replace

import numpy as np
import pytest

from arlow_vl.errors import DataError
from arlow_vl.evaluation.metrics.captions import caption_scores
from arlow_vl.evaluation.metrics.chair import Inventory
from arlow_vl.evaluation.metrics.registry import METRICS, Prediction, chair_metrics, metric_sums
from arlow_vl.evaluation.metrics.vqa import vqa_accuracy

ALL = METRICS | chair_metrics(Inventory({"dog": [], "cat": []}))
CAPTIONS = {"a": ("a red dog runs home", ["a red dog runs", "dog"]), "b": ("a cat", ["the cat sits down here"])}


def captions():
    return [Prediction(id=key, image=key, text=text, references=of) for key, (text, of) in CAPTIONS.items()]


def value(name, predictions):
    sums = metric_sums({name: ALL[name]}, predictions)[name]
    return float(ALL[name].value(sums.sum(axis=0)))


def test_caption_metrics_are_those_of_the_scorer():
    scores = caption_scores({k: v[0] for k, v in CAPTIONS.items()}, {k: v[1] for k, v in CAPTIONS.items()})
    assert value("cider_d", captions()) == pytest.approx(scores.cider)
    assert value("cider", captions()) == pytest.approx(np.mean(scores.plain_cider_per_sample))
    assert value("rouge_l", captions()) == pytest.approx(np.mean(scores.rouge_per_sample))
    assert [value(f"bleu_{order}", captions()) for order in (1, 2, 3, 4)] == pytest.approx(scores.bleu)


def test_vqa_comes_by_both_rules_and_with_what_nothing_matches():
    given = [("two", ["two"] * 10), ("", ["A"] * 2 + ["the"] * 8), ("cat", ["cat"] * 2 + ["dog"] * 8)]
    asked = [Prediction(id=str(i), image="x", text=text, references=of) for i, (text, of) in enumerate(given)]
    for name, rule, empty in (
        ("vqa", "official", False),
        ("vqa_with_empty", "official", True),
        ("vqa_normalised", "normalised both", False),
    ):
        expected = [vqa_accuracy(text, of, rule=rule, empty_may_match=empty) for text, of in given]
        assert value(name, asked) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("name", "score"),
    [("exact_match", 1 / 3), ("squad_exact_match", 2 / 3), ("squad_f1", 2.5 / 3), ("anls", (1 + 0.5 + 0.6) / 3)],
)
def test_short_answers_are_scored_by_the_named_rule(name, score):
    asked = [("Dog", ["cat", "dog"]), ("a dog.", ["dog"]), ("night cats", ["night dog"])]
    predictions = [Prediction(id=str(i), image=str(i), text=text, references=of) for i, (text, of) in enumerate(asked)]
    assert value(name, predictions) == pytest.approx(score)


def test_pope_is_read_from_one_table_of_counts():
    asked = [("yes", "yes"), ("yes", "no"), ("No.", "yes"), ("a dog", "yes")]
    predictions = [Prediction(id=str(i), image="x", text=a, references=[b]) for i, (a, b) in enumerate(asked)]
    names = [name for name in ALL if name.startswith("pope")]
    assert [value(name, predictions) for name in names] == pytest.approx([1 / 2, 2 / 3, 2 / 3, 2 / 3, 3 / 4, 1 / 4])


def test_chair_takes_what_the_references_name_for_there():
    predictions = [
        Prediction(id="1", image="1", text="a dog and a cat", objects=["dog"], references=["two cats"]),
        Prediction(id="2", image="2", text="a dog", objects=["cat"]),
    ]
    assert value("chair_i", predictions) == pytest.approx(1 / 3)
    assert (value("chair_s", predictions), value("chair_recall", predictions)) == pytest.approx((1 / 2, 2 / 3))


def test_likelihood_is_of_all_tokens_together():
    texts = [(-2 * math.log(4), 2, 4), (-6 * math.log(4), 6, 12)]
    predictions = [
        Prediction(id=str(i), image=str(i), log_probability=nats, num_tokens=tokens, num_bytes=size)
        for i, (nats, tokens, size) in enumerate(texts)
    ]
    assert (value("perplexity", predictions), value("bits_per_byte", predictions)) == pytest.approx((4, 1))


def test_metrics_that_share_sums_share_the_work():
    sums = metric_sums({name: METRICS[name] for name in ("cider_d", "bleu_4", "exact_match")}, captions())
    assert sums["cider_d"] is sums["bleu_4"] and sums["exact_match"] is not sums["bleu_4"]


def test_no_two_metrics_have_one_title():
    assert len({metric.title for metric in ALL.values()}) == len(ALL)


@pytest.mark.parametrize("name", ALL)
def test_a_metric_of_a_resample_is_the_metric_of_its_samples_and_of_none_has_no_value(name):
    fields = {"objects": ["dog"], "log_probability": -3.0, "num_tokens": 2, "num_bytes": 9}
    texts = ["yes a dog", "no cat", "a red dog runs home"]
    references = [["no"], ["yes"], ["yes"]] if name.startswith("pope") else [[text] for text in reversed(texts)]
    if name.startswith("scene"):
        texts = [
            "a red car left of two blue cats",
            "two blue cats left of a red car",
            'the word "noon" above a red cat',
        ]
        references = [[texts[0]], [texts[0]], [texts[2]]]
    predictions = [
        Prediction(id=str(i), image=str(i), text=text, references=of, **fields)
        for i, (text, of) in enumerate(zip(texts, references, strict=True))
    ]
    rows = metric_sums({name: ALL[name]}, predictions)[name]
    weights = np.array([[1.0, 1, 1], [2, 0, 1]])
    values = np.asarray(ALL[name].value(weights @ rows))
    assert values.shape == (2,)
    assert values[1] == pytest.approx(float(ALL[name].value(rows[[0, 0, 2]].sum(axis=0))))
    assert np.isnan(ALL[name].value(0 * rows[0]))
    if ALL[name].most is not None:
        assert (values >= 0).all() and (values <= ALL[name].most).all()


def test_captions_that_name_nothing_name_nothing_falsely():
    predictions = [Prediction(id="1", image="1", text="", references=["a red car"], objects=["dog"])]
    assert [value(name, predictions) for name in ("scene_named_falsely", "chair_i")] == [0, 0]


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("cider_d", {"references": []}, "cider_d needs references, and sample b has none"),
        ("chair_i", {}, "chair_i needs objects, and sample a has none; add them to the task's data"),
        ("perplexity", {}, "perplexity needs log probability, and sample a has none"),
        ("vqa", {"text": None}, "vqa needs text, and sample b has none"),
        ("vqa", {"id": "a"}, "sample a has 2 predictions; keep one of them"),
    ],
)
def test_what_a_metric_lacks_is_named(name, change, sentence):
    first, second = captions()
    with pytest.raises(DataError, match=sentence):
        metric_sums({name: ALL[name]}, [first, replace(second, **change)])


def test_no_predictions_are_no_score():
    with pytest.raises(DataError, match="no predictions to score"):
        metric_sums(dict(METRICS), [])
