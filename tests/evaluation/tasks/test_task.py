"""Tasks as YAMLs: what is read, and the sentence that each mistake gets."""

import pytest
import yaml

from arlow_vl.errors import DataError
from arlow_vl.evaluation.tasks.task import Decoding, Likelihood, load_task, parse_task, shipped_tasks

GOOD = {
    "name": "my-set",
    "title": "My set",
    "kind": "question",
    "data": "test-*.tar",
    "decoding": {"max_new_tokens": 5},
    "metrics": ["vqa accuracy"],
    "controls": ["shuffled", "most_frequent"],
}


def test_a_task_is_what_its_yaml_says(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"groups": ["kind"]}))
    task = load_task(str(path))
    assert task == parse_task(GOOD | {"groups": ["kind"]}, "elsewhere")
    assert (task.decoding, task.likelihood, task.groups) == (Decoding(max_new_tokens=5), None, ("kind",))
    assert task.sha256 != parse_task(GOOD, "elsewhere").sha256


def test_a_task_without_a_title_is_called_by_its_name():
    untitled = parse_task({name: value for name, value in GOOD.items() if name != "title"}, "t")
    assert untitled == parse_task(GOOD | {"title": "my-set"}, "t")
    assert untitled.title == "my-set" and untitled.sha256 != parse_task(GOOD, "t").sha256


def test_a_shipped_task_is_found_by_its_name():
    assert {load_task(name).name for name in shipped_tasks()} == set(shipped_tasks())
    assert load_task("pope-random").likelihood == Likelihood(choices=("yes", "no"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metrc": []}, r"t: unknown 'metrc'; did you mean metrics\?"),
        ({"kind": "questions"}, r"t: kind cannot be 'questions'; did you mean question\?"),
        ({"metrics": ["BLEU"]}, r"t: metrics cannot be 'BLEU'; known are vqa accuracy, "),
        ({"metrics": []}, r"t: metrics is empty"),
        ({"metrics": "vqa accuracy"}, r"t: metrics must be a list of strings, got 'vqa accuracy'"),
        ({"controls": ["shuffled", "shuffled"]}, r"t: controls names one twice"),
        ({"controls": ["shuffled"]}, r"t: a score needs controls beside it; name at least one of most_frequent"),
        ({"controls": ["most_frequent"]}, r"t: a score needs controls beside it; name at least one of shuffled"),
        ({"controls": ["unigram"]}, r"t: controls cannot be 'unigram'"),
        ({"decoding": {"max_new_tokens": 0}}, r"t: decoding.max_new_tokens must be at least 1, got 0"),
        ({"decoding": {"max_new_tokens": "5"}}, r"t: decoding: max_new_tokens must be a whole number, got '5'"),
        ({"decoding": {"max_tokens": 5}}, r"t: decoding: unknown 'max_tokens'; did you mean max_new_tokens\?"),
        ({"decoding": {}}, r"t: decoding: max_new_tokens is missing"),
        ({"decoding": 5}, r"t: decoding: must be names with values, got int"),
        ({"likelihood": {"choices": ["a", "b"]}}, r"needs decoding or likelihood, got decoding and likelihood"),
        ({"title": 5}, r"t: title must be a string, got 5"),
        ({"name": "../up"}, r"t: name must be of a-z"),
        ({"name": "a" * 101}, r"t: name is a folder's and has 100 letters at most, got 101"),
        ({"groups": ["colour"]}, r"t: groups cannot be 'colour'; known are kind, first words"),
    ],
)
def test_a_mistake_is_named_with_its_field(changes, sentence):
    with pytest.raises(DataError, match=sentence):
        parse_task(GOOD | changes, "t")


@pytest.mark.parametrize(
    ("likelihood", "sentence"),
    [
        ({"choices": ["yes"]}, "two different answers at least"),
        ({"choices": ["yes", True]}, "must be a list of strings"),
        ({"choices": ["yes", " "]}, "none of its choices may be empty"),
        (
            {"choices": ["yes", "no"], "normalise": "tokens"},
            "normalise cannot be 'tokens'; known are none, char",
        ),
    ],
)
def test_choices_are_different_answers(likelihood, sentence):
    without = {name: value for name, value in GOOD.items() if name != "decoding"}
    with pytest.raises(DataError, match=sentence):
        parse_task(without | {"likelihood": likelihood}, "t")


def test_a_text_task_has_windows_that_overlap():
    text = {
        "kind": "text",
        "metrics": ["perplexity"],
        "controls": ["unigram"],
        "perplexity": {"window": 8, "stride": 8},
    }
    without = {name: value for name, value in GOOD.items() if name != "decoding"}
    with pytest.raises(DataError, match="stride must be less than its window, got 8"):
        parse_task(without | text, "t")
    without_windows = {name: value for name, value in (GOOD | text).items() if name != "perplexity"}
    with pytest.raises(DataError, match="a text task needs perplexity, got decoding"):
        parse_task(without_windows, "t")


def test_a_name_that_is_no_task_gets_the_closest_one():
    with pytest.raises(DataError, match=r"no task is called vqav3; did you mean vqav2\?"):
        load_task("vqav3")


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "t.yaml").write_text("a: [")
    with pytest.raises(DataError, match=r"t\.yaml is not YAML: "):
        load_task(str(tmp_path / "t.yaml"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            yaml.safe_dump(GOOD) + "metrics: [ANLS]\n",
            r"my\.yaml is not YAML: metrics is given twice",
        ),
        (
            yaml.safe_dump(GOOD).replace("max_new_tokens: 5", "max_new_tokens: 5\n  max_new_tokens: 6"),
            "is given twice",
        ),
        ("[" * 5000, r"my\.yaml: no task, it is nested too deep"),
        (None, r"my\.yaml: No such file or directory; name the \.yaml of a task"),
    ],
)
def test_a_file_that_is_no_task_is_named(tmp_path, text, sentence):
    path = tmp_path / "my.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        load_task(str(path))
