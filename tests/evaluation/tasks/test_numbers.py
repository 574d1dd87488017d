"""Windows, priors, measures and batches, each against the plain way."""

import math
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.data.prompts import about_image, encode_prompt
from arlow_vl.data.sample_dataset import PlacedImage
from arlow_vl.errors import DataError
from arlow_vl.evaluation import bootstrap, likelihood
from arlow_vl.evaluation.bootstrap import difference_interval, draw_weights, metric_interval
from arlow_vl.evaluation.generation import write_batch
from arlow_vl.evaluation.metrics.captions import caption_scores
from arlow_vl.evaluation.metrics.pope import pope_answer
from arlow_vl.evaluation.metrics.vqa import vqa_accuracy
from arlow_vl.evaluation.tasks.answering import check_controls, shown_to
from arlow_vl.evaluation.tasks.items import Item, join_by_images, open_samples, read_items, share_images
from arlow_vl.evaluation.tasks.measures import check_references, measure
from arlow_vl.evaluation.tasks.perplexity import (
    Document,
    document_nats,
    document_windows,
    log_probability,
    read_documents,
)
from arlow_vl.evaluation.tasks.places import place_of
from arlow_vl.evaluation.tasks.predictions import MODEL, PredictionRow
from arlow_vl.evaluation.tasks.priors import Prior, nearest_neighbours
from arlow_vl.evaluation.tasks.scoring import as_fields, compare, fields_of_difference, groups_of, rows_of, score_task
from arlow_vl.evaluation.tasks.table import format_scores
from arlow_vl.evaluation.tasks.task import Perplexity, parse_task
from arlow_vl.models.folders import load_vision_language_model
from experiments.plain_controls import most_frequent, question_prior
from tests.evaluation.completions import complete_prompt
from tests.evaluation.tasks.conftest import image_bytes, lines, write
from tests.evaluation.tasks.test_likelihood import Pack, plain
from tests.evaluation.tasks.test_resume import TASK
from tests.outside_data import tar_of

WORDS = st.sampled_from(["red", "blue", "no"])
ITEMS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from("pq"), WORDS), min_size=2, max_size=12)


@pytest.fixture(scope="module")
def loaded(model_folder):
    model, processor = load_vision_language_model(model_folder)
    return model.double(), processor.tokenizer


def item(number, image, question, answer):
    images = (PlacedImage(f"bytes of image {image}".encode(), f"image {image}"),)
    return Item(str(number), f"image {image}", images, (), question, (answer,), (answer,), "")


def of_images(name, answer="red"):
    """An item that shows an image for each letter of its name, and asks about all."""
    images = tuple(PlacedImage(letter.encode(), name) for letter in name)
    return Item(name, name, images, (), "p", (answer,), (answer,), "")


def made(triples):
    return [item(number, *triple) for number, triple in enumerate(triples)]


@given(st.integers(1, 40), st.integers(2, 12), st.data())
def test_windows_count_every_token_once_and_see_what_they_may(length, window, data):
    stride = data.draw(st.integers(1, window - 1))
    ids = list(range(1, length + 1))
    counted, seen = [], []
    for part in document_windows(ids, 0, Perplexity(window=window, stride=stride)):
        assert len(part.ids) <= window and part.counted < len(part.ids)
        counted += part.ids[-part.counted :]
        seen += [len(part.ids) - part.counted + place for place in range(part.counted)]
    assert counted == ids
    assert all(before >= min(token, window - stride) for token, before in zip(ids, seen, strict=True))


def test_a_documents_probability_is_that_of_a_plain_loop(loaded):
    model, tokenizer = loaded
    parts = list(document_windows(list(range(30, 60)), tokenizer.bos_token_id, Perplexity(window=8, stride=3)))
    expected = []
    for part in parts:
        with torch.inference_mode():
            logits = model(torch.tensor([part.ids])).logits[0].log_softmax(-1)
        places = range(len(part.ids) - part.counted, len(part.ids))
        expected.append(sum(logits[place - 1, part.ids[place]].item() for place in places))
    assert log_probability(model, tokenizer.pad_token_id, parts) == pytest.approx(expected, abs=1e-9)


def test_a_documents_probability_is_the_same_on_a_device_without_float64(loaded, request):
    model, tokenizer = loaded
    parts = list(document_windows(list(range(30, 60)), tokenizer.bos_token_id, Perplexity(window=8, stride=3)))
    expected = log_probability(model, tokenizer.pad_token_id, parts)
    request.getfixturevalue("without_float64")
    assert log_probability(model, tokenizer.pad_token_id, parts) == expected


def test_a_document_of_many_windows_is_read_a_few_at_a_time_where_their_logits_are_many(loaded, monkeypatch):
    model, tokenizer = loaded
    document, how = Document("a", "", list(range(30, 90))), Perplexity(window=8, stride=3)
    whole = document_nats(model, tokenizer, document, how, 64)
    monkeypatch.setattr(likelihood, "MOST_LOGITS", 3 * 8 * model.config.get_text_config().vocab_size)
    rows = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    assert document_nats(model, tokenizer, document, how, 64) == pytest.approx(whole, abs=1e-9)
    handle.remove()
    assert max(rows) == 3 and sum(rows) == len(list(document_windows(document.ids, 0, how)))


def test_documents_of_two_files_of_one_name_are_told_apart_by_their_folders(tmp_path, loaded):
    one, two = lines([{"text": "one"}] * 2), lines([{"text": "two"}])
    write(tmp_path, {"a/0.jsonl": one, "b/0.jsonl": two, "c.txt": "three"})
    ids = [document.id for document in read_documents(str(tmp_path), loaded[1])]
    assert ids == ["a/0.jsonl:1", "a/0.jsonl:2", "b/0.jsonl:1", "c.txt:1"]


@given(ITEMS)
def test_a_prior_knows_no_answer_from_the_own_image_alone(triples):
    items = made(triples)
    prior = Prior(items, leave_own_out=True)
    for one in items:
        others = [other for other in items if other.image != one.image]
        if not others:
            continue
        elsewhere = {other.answers[0] for other in others}
        usual = most_frequent(of.answers[0] for of in items if of.answers[0] in elsewhere)
        assert prior.most_frequent(one) == usual
        asked = {other.answers[0] for other in others if other.question == one.question}
        known = [of.answers[0] for of in items if of.question == one.question and of.answers[0] in asked]
        assert prior.to_question(one) == (most_frequent(known) if known else usual)


PAIRS = st.lists(st.sampled_from(["ab", "ac", "bc", "cd", "de", "ef", "fa"]), min_size=2, max_size=7, unique=True)


@given(PAIRS, st.data())
def test_no_answer_comes_from_an_item_that_shows_one_of_the_own_images(names, data):
    items = join_by_images([of_images(name, data.draw(WORDS)) for name in names])
    task = parse_task(TASK | {"controls": ["no_image", "most_frequent"]}, "t")
    others = [[other for other in items if not set(other.id) & set(one.id)] for one in items]
    if not all(others):
        with pytest.raises(DataError, match="every item shows one of those of"):
            check_controls(task, items, [])
        return
    check_controls(task, items, [])
    prior = Prior(items, leave_own_out=True)
    angles = dict(zip(names, data.draw(st.permutations(range(7))), strict=False))

    def pooled(some):
        return np.array([[math.cos(0.1 * angles[one.id]), math.sin(0.1 * angles[one.id])] for one in some])

    nearest = nearest_neighbours(items, items, prior, pooled)
    for one, of, found in zip(items, others, nearest, strict=True):
        assert prior.most_frequent(one) in {other.answers[0] for other in of}
        away = [(abs(angles[other.id] - angles[one.id]), other.answers[0]) for other in of]
        assert found in {answer for angle, answer in away if angle == min(away)[0]}


def test_a_prior_from_as_many_yes_as_no_is_right_half_of_the_time():
    items = made([(image, "p", "yes" if image % 2 else "no") for image in range(10)])
    prior = Prior(items, leave_own_out=True)
    assert [prior.most_frequent(one) for one in items] == ["no"] * 10
    assert [prior.to_question(one) for one in items] == ["no"] * 10


@given(ITEMS, ITEMS)
def test_a_prior_from_training_is_that_of_the_plain_functions(train, test):
    known, items = made(train), made(test)
    prior = Prior(known, leave_own_out=False)
    pairs = [(one.question, one.answers[0]) for one in known]
    assert [prior.to_question(one) for one in items] == question_prior(pairs, [one.question for one in items])
    assert prior.most_frequent(items[0]) == most_frequent(answer for _, answer in pairs)


def test_the_nearest_image_that_was_asked_the_same_answers():
    items = made([(0, "p", "red"), (1, "p", "blue"), (2, "p", "no"), (3, "q", "only")])
    angles = {"image 0": 0.0, "image 1": 1.0, "image 2": 0.2, "image 3": 0.0}

    def pooled(some):
        return np.array([[math.cos(angles[one.image]), math.sin(angles[one.image])] for one in some])

    prior = Prior(items, leave_own_out=True)
    assert nearest_neighbours(items, items, prior, pooled) == ["no", "no", "red", "blue"]


def test_an_item_without_images_is_shown_none_and_has_the_priors_answer():
    items = made([(0, "p", "red"), (1, "p", "blue"), (2, "p", "blue"), (3, "p", "blue")])
    items[2] = replace(items[2], images=())

    def pooled(some):
        assert all(one.images for one in some)
        return np.array([[1.0, float(one.image[-1])] for one in some])

    prior = Prior(items, leave_own_out=True)
    assert nearest_neighbours(items, items, prior, pooled) == ["blue", "blue", "blue", "blue"]
    assert nearest_neighbours(items[2:3], items, prior, pooled) == ["blue"]
    shown = [one.images for one in shown_to("shuffled", items, "blank")]
    assert shown[2] == () and sorted(shown) == sorted(one.shown for one in items)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12).filter(lambda images: len(set(images)) > 1))
def test_no_item_is_shown_its_own_image_when_images_are_shuffled(images):
    items = [item(number, image, "p", "red") for number, image in enumerate(images)]
    asked = shown_to("shuffled", items, "blank")
    assert all(a.images != one.shown for a, one in zip(asked, items, strict=True))
    assert Counter(a.images for a in asked).keys() == {one.shown for one in items}


@given(st.sets(st.sets(st.integers(0, 5), min_size=1, max_size=3).map(frozenset), min_size=2, max_size=12))
def test_no_item_is_shown_one_of_its_own_images_when_several_are_shuffled(of_items):
    items = []
    for shown in sorted(map(sorted, of_items)):
        images = tuple(PlacedImage(b"%d" % image, "") for image in shown)
        items.append(Item(f"{shown}", f"{shown}", images, (), "p", ("red",), ("red",), ""))
    if len(frozenset().union(*of_items)) in map(len, of_items):
        with pytest.raises(DataError, match="shows every image of the set"):
            shown_to("shuffled", items, "blank")
        return
    for one, asked in zip(items, shown_to("shuffled", items, "blank"), strict=True):
        assert len(asked.images) == len(one.images) and set(asked.images).isdisjoint(one.shown)


def test_samples_that_show_the_same_bytes_are_of_one_image(tmp_path):
    asked = b'{"questions": [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]}'
    shown = {"a": "red", "b": "blue", "c": "red", "d": "green"}
    members = [m for k, of in shown.items() for m in ((f"{k}.png", image_bytes(of)), (f"{k}.json", asked))]
    write(tmp_path, {"test-0.tar": tar_of(*members)})
    task = parse_task(TASK, "t")
    items = read_items(task, open_samples(task, place_of(task, tmp_path)))
    assert [one.id[-3:] for one in items] == ["a?0", "a?1", "b?0", "b?1", "c?0", "c?1", "d?0", "d?1"]
    assert [one.image[-1] for one in items] == ["a", "a", "b", "b", "a", "a", "d", "d"]


def test_items_that_share_images_directly_or_through_others_are_of_one_group():
    items = join_by_images([of_images(name) for name in ("ab", "cd", "eb", "fg", "fe", "h", "hh")])
    names = {one.id: one.image for one in items}
    assert names == {"ab": "ab", "cd": "cd", "eb": "ab", "fg": "ab", "fe": "ab", "h": "h", "hh": "h"}
    assert share_images(join_by_images([of_images("ab"), of_images("bc")]))
    assert not share_images(join_by_images([of_images("ab"), of_images("ba"), of_images("cd")]))


@pytest.mark.parametrize(
    ("changes", "items", "sentence"),
    [
        ({"controls": ["no_image", "most_frequent"]}, [(0, "p", "red")] * 2, "answers about two images at least"),
        ({"controls": ["shuffled", "most_frequent"]}, [(0, "p", "red"), (0, "q", "no")], "two images at least"),
        ({"likelihood": {"choices": ["answers"]}}, [(0, "p", "red"), (1, "p", "red")], "which have 1 only"),
    ],
)
def test_a_set_that_is_too_small_is_refused_before_anything_is_asked(changes, items, sentence):
    asked = TASK if "likelihood" not in changes else {name: of for name, of in TASK.items() if name != "decoding"}
    with pytest.raises(DataError, match=sentence):
        check_controls(parse_task(asked | changes, "t"), made(items), [])


def rows(*outputs, references=(("red",), ("blue",), ("yes",)), **more):
    return [
        PredictionRow(id=str(n), image=f"i{n // 2}", prompt="what is it", output=output, references=list(of), **more)
        for n, (output, of) in enumerate(zip(outputs, references, strict=True))
    ]


def test_measures_are_those_of_the_plain_functions():
    said = rows("a red dog", "a cat", "the blue boat", references=(("a red dog runs",), ("a cat", "cats"), ("boat",)))
    plain_scores = caption_scores({row.id: row.output for row in said}, {row.id: row.references for row in said})
    (cider,) = measure(["CIDEr-D"], said).values()
    assert float(cider.metric.value(cider.statistics.sum(0))) == pytest.approx(plain_scores.cider, abs=1e-12)
    bleus = measure(["BLEU"], said)
    assert [float(of.metric.value(of.statistics.sum(0))) for of in bleus.values()] == plain_scores.bleu
    answers = rows("red", "Blue.", "no")
    (accuracy,) = measure(["vqa accuracy"], answers).values()
    expected = np.mean([vqa_accuracy(row.output, row.references, rule="official") for row in answers])
    assert float(accuracy.metric.value(accuracy.statistics.sum(0))) == expected == 2 / 3


def test_a_task_may_ask_for_an_exact_match_by_either_rule():
    said = rows("Red ", "the blue.", "yes")
    for name, share in (("exact match", 1), ("exact match, case and space apart", 2 / 3)):
        (match,) = measure([name], said).values()
        assert float(match.metric.value(match.statistics.sum(0))) == pytest.approx(share)


@pytest.mark.parametrize("rule", ["", ", nothing may match", ", normalised both"])
@pytest.mark.parametrize(("few", "most"), [(2, "33%"), (3, "67%")])
def test_answers_too_few_for_vqa_accuracy_are_refused_and_exact_match_is_named(rule, few, most):
    references = [("a", ["robin"]), ("b", ["robin"] * 10), ("c", ["a robin", "robin", "bird"][:few])]
    with pytest.raises(
        DataError, match=rf"sample c has {few} answers, .* gives {most} at most; name exact match instead"
    ):
        check_references([f"vqa accuracy{rule}"], references)
    check_references([f"vqa accuracy{rule}"], [*references[:2], ("c", ["robin"] * 4)])
    check_references(["exact match"], references)


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [("Yes", True), ("No", False), ("no, it is not", False), ("There is. No more.", True), ("", True), ("none", True)],
)
def test_an_answer_is_read_as_popes_own_script_reads_it(answer, is_yes):
    assert (pope_answer(answer) == "yes") == is_yes


def test_pope_counts_what_is_found_and_what_is_invented():
    said = rows("yes", "yes", "no", "no", references=(("yes",), ("no",), ("yes",), ("no",)))
    found = {name: float(of.metric.value(of.statistics.sum(0))) for name, of in measure(["POPE"], said).items()}
    halves = dict.fromkeys(("POPE accuracy", "precision", "recall", "F1", "share of yes"), 0.5)
    assert found == halves | {"neither yes nor no": 0}
    assert list(measure(["vqa accuracy", "POPE"], said)) == ["accuracy", *found]


def test_scenes_are_scored_by_their_parts():
    scene = "a red car left of two blue cats"
    said = rows(
        scene, "a red car left of three blue cats", "two blue cats left of a red car", references=((scene,),) * 3
    )
    found = {name: float(of.metric.value(of.statistics.sum(0))) for name, of in measure(["scenes"], said).items()}
    assert (found["whole scene"], found["parts swapped"]) == pytest.approx((1 / 3, 1 / 3))
    assert (found["thing"], found["count"], found["relation"]) == pytest.approx((1, 5 / 6, 2 / 3))


def test_perplexity_and_bits_are_over_all_documents():
    said = rows("", "", "", references=((), (), ()), log_probability=-6.0, tokens=3, bytes=12)
    found = {n: next(iter(measure([n], said).values())) for n in ("perplexity", "bits per byte")}
    values = {name: float(of.metric.value(of.statistics.sum(0))) for name, of in found.items()}
    assert values == pytest.approx({"perplexity": math.exp(2), "bits per byte": 0.5 / math.log(2)})


def test_a_document_of_which_a_tokenizer_drops_all_counts_with_its_bytes():
    (one,) = rows("", references=((),), log_probability=-6.0, tokens=3, bytes=12)
    said = [one, replace(one, id="dropped", log_probability=0.0, tokens=0, bytes=6)]
    found = {n: next(iter(measure([n], said).values())) for n in ("perplexity", "bits per byte")}
    values = {name: float(of.metric.value(of.statistics.sum(0))) for name, of in found.items()}
    assert values == pytest.approx({"perplexity": math.exp(2), "bits per byte": 6 / 18 / math.log(2)})


def test_where_the_prior_is_wrong_the_prior_scores_nothing():
    task = parse_task(TASK, "t")
    systems = {"model": rows("red", "red", "yes"), "shuffled": rows("red", "red", "no")}
    systems |= {"no_image": rows("", "", ""), "question_prior": rows("red", "yes", "yes")}
    assert groups_of(task, systems)["where the prior is wrong"].tolist() == [False, True, False]
    groups = score_task(task, systems)["metrics"]["accuracy"]["groups"]
    assert groups["where the prior is wrong"]["systems"]["question_prior"]["estimate"] == 0
    assert groups["all"]["systems"]["model"]["estimate"] == pytest.approx(2 / 3)
    assert groups["all"]["differences"]["no_image"]["estimate"] == pytest.approx(2 / 3)


def test_first_words_that_differ_are_counted_in_one_go():
    """For each of them all were gone through: of 40,000 that took 15 s."""
    asked = [f"word{number} it is?" for number in range(40_000)] + ["what colour is it?"] * 50
    said = [PredictionRow(id="", image="a", prompt=prompt, output="", references=[]) for prompt in asked]
    began = time.process_time()
    groups = groups_of(replace(parse_task(TASK, "t"), groups=("first words",)), {"model": said})
    assert time.process_time() - began < 2
    assert {name: int(mask.sum()) for name, mask in groups.items()} == {"all": 40_050, "what colour ...": 50}


def test_a_group_on_few_images_is_scored_by_the_resamples_that_hold_one(monkeypatch):
    """Twelve questions on two of 60 images, all answered right, by no control; in one block of resamples or many."""
    asked = [(f"image {number}", "plain") for number in range(60)] + [
        (f"image {number % 2}", "rare") for number in range(12)
    ]
    systems = {
        name: [
            PredictionRow(id=str(n), image=image, prompt="q", output=said, references=["yes"], kind=kind)
            for n, (image, kind) in enumerate(asked)
        ]
        for name, said in (("model", "yes"), ("shuffled", "no"), ("most_frequent", "no"))
    }
    task = parse_task(TASK | {"metrics": ["exact match"], "controls": ["shuffled", "most_frequent"]}, "t")
    task = replace(task, groups=("kind",))
    found = score_task(task, systems)
    monkeypatch.setattr(bootstrap, "MOST_WEIGHTS", 7 * 60)
    assert rows_of(score_task(task, systems)) == pytest.approx(rows_of(found), rel=1e-12)
    rare = found["metrics"]["exact match"]["groups"]["rare"]
    assert (rare["items"], rare["images"]) == (12, 2)
    assert rare["systems"]["model"] == {"estimate": 1, "low": 1, "high": 1}
    assert rare["differences"]["shuffled"] == {"estimate": 1, "low": 1, "high": 1, "outside_zero": True}
    table = format_scores({"scores": found, "task": {"title": "Rare", "kind": "question"}})
    (row,) = [line for line in table.splitlines() if line.startswith("  rare ")]
    assert row.split()[1:3] == ["12", "(few)"] and table.endswith(
        "(few): fewer than 10 images, a score that says little"
    )


def test_a_slot_that_no_scene_of_a_group_has_is_not_scored_there():
    told = ["a red car left of a blue cat", 'the word "noon" above a red cat', "a blue cat"]
    made = [
        PredictionRow(
            id=str(n), image=str(n), prompt="", output=one, references=[one], kind="word" if "word" in one else ""
        )
        for n, one in enumerate(told)
    ]
    task = parse_task(TASK | {"kind": "caption", "metrics": ["scenes"], "controls": ["shuffled", "most_frequent"]}, "t")
    task = replace(task, groups=("kind",))
    found = score_task(task, dict.fromkeys(("model", "shuffled", "most_frequent"), made))["metrics"]
    assert found["word"]["groups"].keys() == {"all", "word"} and len(found["thing"]["groups"]) == 3


def test_the_same_predictions_give_the_same_scores():
    task = parse_task(TASK, "t")
    systems = {name: rows("red", "no", "yes") for name in ("model", "shuffled", "no_image", "question_prior")}
    assert score_task(task, systems) == score_task(task, systems)


def test_a_batch_that_shares_images_writes_what_each_prompt_writes_alone(loaded):
    model, tokenizer = loaded
    texts, images = ["Is it red?", "What does the bird see over the hills?", "Is it big?", "Is it red?"], [1, 1, 2, 2]
    prompts, pack = [about_image(text) for text in texts], Pack()
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    written = write_batch(model, tokenizer, ids, [[image] for image in images], pack, max_new_tokens=8)
    assert pack.calls == [[1, 2]]
    alone = [
        complete_prompt(model, tokenizer, prompt, Pack()([image]), max_new_tokens=8)
        for prompt, image in zip(prompts, images, strict=True)
    ]
    assert [text for text, _ in written] == alone


def test_beams_write_what_they_write_alone(loaded):
    model, tokenizer = loaded
    ids = [encode_prompt(tokenizer, about_image(text)) for text in ("Is it red?", "Is the big dog red?")]
    settings = {"max_new_tokens": 6, "num_beams": 3}
    both = write_batch(model, tokenizer, ids, [[1], [1]], Pack(), **settings)
    alone = [write_batch(model, tokenizer, [one], [[1]], Pack(), **settings)[0] for one in ids]
    assert both == alone and both[0][1] is None


def test_the_probability_of_what_was_written_is_that_of_a_plain_loop(loaded):
    model, tokenizer = loaded
    message = about_image("Is it red?")
    ids = encode_prompt(tokenizer, message)
    ((_, nats),) = write_batch(model, tokenizer, [ids], [[3]], Pack(), max_new_tokens=5)
    total, read = 0.0, list(ids)
    ends = model.generation_config.eos_token_id
    for _ in range(5):
        with torch.inference_mode():
            logits = model(torch.tensor([read]), **Pack()([3])).logits[0, -1].log_softmax(-1)
        read.append(int(logits.argmax()))
        total += float(logits.max())
        if read[-1] in ends:
            break
    assert nats == pytest.approx(total, abs=1e-5)
    assert plain(model, tokenizer, message, [3], "red") < 0


def test_a_kind_that_is_called_all_does_not_take_the_place_of_all_items():
    said = rows("red", "blue", "no")
    said = [replace(row, kind="all" if number else "other") for number, row in enumerate(said)]
    task = parse_task(TASK | {"groups": ["kind"]}, "t")
    groups = groups_of(task, dict.fromkeys((MODEL, *task.controls), said))
    assert groups["all"].all() and groups["all (kind)"].tolist() == [False, True, True]


def test_a_group_has_the_intervals_of_each_system_and_of_its_difference():
    rng, weights = np.random.default_rng(0), draw_weights(20, resamples=50)
    statistics = {name: rng.random((20, 2)) for name in (MODEL, "shuffled", "no_image")}

    def share(sums):
        return sums[..., 0] / sums[..., 1]

    found = compare({name: (share(of.sum(axis=0)), share(weights @ of)) for name, of in statistics.items()})
    for name, of in statistics.items():
        assert found["systems"][name] == as_fields(metric_interval(of, share, weights))
        if name != MODEL:
            interval = difference_interval(statistics[MODEL], of, share, weights)
            assert found["differences"][name] == fields_of_difference(interval)
