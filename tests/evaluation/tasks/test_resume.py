"""Results that are gone on with, and those that are refused, each with its sentence."""

import json
import os
import re
import shutil
import signal
from dataclasses import fields
from pathlib import Path

import pytest

from arlow_vl.cli import main
from arlow_vl.errors import DataError
from arlow_vl.evaluation.report.facts import facts_of
from arlow_vl.evaluation.tasks.predictions import PredictionFile, PredictionRow, line_of, read_rows, start
from arlow_vl.evaluation.tasks.results import read_results
from arlow_vl.stopping import end_by_sigterm
from tests.evaluation.tasks.conftest import write
from tests.evaluation.tasks.made_sets import shard

TASK = {
    "name": "mine",
    "title": "Mine",
    "kind": "question",
    "data": "test-*.tar",
    "decoding": {"max_new_tokens": 3},
    "metrics": ["vqa accuracy"],
    "controls": ["shuffled", "no_image", "question_prior"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    write(folder, {"data/test-000000.tar": shard("test"), "mine.yaml": TASK, "train/train-000000.tar": shard("train")})
    return folder


@pytest.fixture
def evaluate(folder, model_folder):
    def run(output, **options):
        values = {"model": model_folder, "task": folder / "mine.yaml", "data": folder / "data", "batch-size": 4}
        values |= {"features": folder / "features", "output": output} | options
        return main(["evaluate", *(str(word) for name, value in values.items() for word in (f"--{name}", value))])

    return run


@pytest.fixture(scope="module")
def whole(folder, model_folder):
    words = ["--task", folder / "mine.yaml", "--data", folder / "data", "--batch-size", 4, "--model", model_folder]
    words += ["--features", folder / "features", "--output", folder / "whole"]
    assert main(["evaluate", *map(str, words)]) == 0
    return folder / "whole"


def files_of(results):
    return {path.relative_to(results): path.read_bytes() for path in results.rglob("predictions.jsonl")}


def scores_of(results):
    return json.loads((results / "mine" / "metrics.json").read_text())["scores"]


@pytest.mark.parametrize("kept", [0, 1, 5, 11])
def test_a_run_that_was_killed_ends_with_the_same_bytes(whole, evaluate, tmp_path, kept):
    shutil.copytree(whole, tmp_path / "results")
    path = tmp_path / "results" / "mine" / "model" / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept][::-1]) + lines[kept][:20])  # in any order, and a line that was cut
    shutil.rmtree(tmp_path / "results" / "mine" / "no_image")
    (tmp_path / "results" / "mine" / "metrics.json").unlink()
    for half in (".run.json.0123abcd.partial", "model/.predictions.jsonl.0123abcd.partial"):
        (tmp_path / "results" / "mine" / half).write_text("{")
    assert evaluate(tmp_path / "results") == 0
    assert list((tmp_path / "results").rglob("*.partial")) == []
    assert files_of(tmp_path / "results") == files_of(whole)
    assert scores_of(tmp_path / "results") == scores_of(whole)


@pytest.mark.parametrize(("number", "told"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")])
def test_a_run_that_is_stopped_says_how_far_it_came(whole, evaluate, tmp_path, monkeypatch, capsys, number, told):
    before, add = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)], PredictionFile.add
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background process lacks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_by_sigterm()

    def add_and_stop(self, rows):
        add(self, rows)
        if len(self.rows) >= 8:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(PredictionFile, "add", add_and_stop)
        assert evaluate(tmp_path) == 128 + number
    for one, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(one, handler)
    held = sum(len(content.splitlines()) for content in files_of(tmp_path).values())
    sentence = capsys.readouterr().err.splitlines()[-1]
    found = re.fullmatch(
        rf"arlow: {told}; {tmp_path} holds (\d+) of 48 predictions, and the same command continues", sentence
    )
    assert found and held - 4 <= int(found[1]) <= held == 8  # the batch under way is not counted
    assert evaluate(tmp_path) == 0
    assert files_of(tmp_path) == files_of(whole)


def test_a_run_that_goes_on_in_other_batches_says_both(whole, evaluate, tmp_path, capsys):
    results = shutil.copytree(whole, tmp_path / "results")
    shutil.rmtree(results / "mine" / "no_image")
    (results / "mine" / "metrics.json").unlink()
    assert evaluate(results, **{"batch-size": 2}) == 0
    on = json.loads((whole / "mine" / "metrics.json").read_text())["made_with"][0]["device"]
    told = f"warning: mine is answered on {on} in batches of 4, then {on} in batches of 2, whose rounding may differ"
    assert told in capsys.readouterr().out
    assert evaluate(results, **{"batch-size": 3}) == 0  # which answers nothing
    found = json.loads((results / "mine" / "metrics.json").read_text())
    assert found["made_with"] == [{"device": on, "batch_size": size} for size in (4, 2)]
    (lines,) = (lines for name, lines in facts_of(read_results(results)[0]) if name == "device")
    assert [line.rpartition(", ")[2] for line in lines] == ["batches of 4", "batches of 2"]


def test_what_is_there_is_not_asked_again(whole, evaluate, tmp_path):
    shutil.copytree(whole, tmp_path / "results")
    path = tmp_path / "results" / "mine" / "model" / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"output": "said before"}) + "\n" for row in rows))
    assert evaluate(tmp_path / "results") == 0
    assert {row.output for row in read_rows(path)} == {"said before"}


def test_predictions_by_another_task_are_refused(whole, evaluate, folder, tmp_path, capsys):
    write(tmp_path, {"other.yaml": TASK | {"instruction": "Answer in one word."}})
    assert evaluate(whole, task=tmp_path / "other.yaml") == 3
    said = capsys.readouterr().err
    assert "mine holds predictions of another run (instruction was '', is 'Answer in one word.'); run `arlow" in said


def test_predictions_of_other_data_are_refused(whole, evaluate, folder, capsys):
    assert evaluate(whole, data=folder / "train" / "train-*.tar") == 3
    places = folder / "data" / "test-*.tar", folder / "train" / "train-*.tar"
    assert "another run (data.source was '{}', is '{}')".format(*places) in capsys.readouterr().err


def test_every_setting_that_changed_is_named_with_what_it_was(whole, evaluate, tmp_path, capsys):
    changed = {"decoding": {"max_new_tokens": 5, "num_beams": 2}, "title": "Ours", "groups": ["kind"]}
    write(tmp_path, {"other.yaml": TASK | changed})
    assert evaluate(whole, task=tmp_path / "other.yaml", limit=4, **{"features-dtype": "float32"}) == 3
    told = "title was 'Mine', is 'Ours', decoding.max_new_tokens was 3, is 5, decoding.num_beams was 1, is 2, 1 more; "
    told += "--limit was 12, is 4; --features-dtype was 'float16', is 'float32'"
    assert f"another run ({told})" in capsys.readouterr().err


def test_a_model_that_is_another_or_was_written_again_is_named(whole, evaluate, model_folder, tmp_path, capsys):
    shutil.copytree(model_folder, tmp_path / "hf")
    settings = tmp_path / "hf" / "generation_config.json"
    settings.write_text(settings.read_text() + " ")
    assert evaluate(whole, model=tmp_path / "hf") == 3
    assert f"(model was '{model_folder}', is '{tmp_path / 'hf'}')" in capsys.readouterr().err
    shutil.copytree(whole, tmp_path / "results")
    run = tmp_path / "results" / "mine" / "run.json"
    told = json.loads(run.read_text())
    run.write_text(json.dumps(told | {"model": "ab" * 32}))
    assert evaluate(tmp_path / "results") == 3
    assert "another run (model holds other bytes than it did)" in capsys.readouterr().err
    run.write_text(json.dumps({name: value for name, value in told.items() if name != "settings"} | {"task": "ab"}))
    assert evaluate(tmp_path / "results") == 3  # as folders were written before they held settings
    assert "another run (task was another)" in capsys.readouterr().err


def test_predictions_of_unknown_origin_are_refused(whole, evaluate, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "results")
    (tmp_path / "results" / "mine" / "run.json").unlink()
    assert evaluate(tmp_path / "results") == 3
    assert "no run.json says what made these predictions" in capsys.readouterr().err


def broken(row, **changes):
    return json.dumps({name: value for name, value in (row | changes).items() if value is not None}) + "\n"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda row, lines: "".join([*lines, lines[0]]),
            "predictions.jsonl:13: id 'test-000000.tar:test-000000?0' comes",
        ),
        (
            lambda row, lines: broken(row, id="another") + "".join(lines[1:]),
            "other items than the model's, the first at",
        ),
        (lambda row, lines: "".join(lines[:-1]), "other items than the model's, the first at 'the last' (11 and 12)"),
        (
            lambda row, lines: broken(row, output=3) + "".join(lines[1:]),
            "predictions.jsonl:1: no prediction (output is no",
        ),
        (
            lambda row, lines: broken(row, references=None) + "".join(lines[1:]),
            "1: no prediction (references is missing)",
        ),
        (lambda row, lines: "{\n" + "".join(lines[1:]), "predictions.jsonl:1: no prediction"),
        (lambda row, lines: None, "is missing, and no score is given without its controls"),
    ],
)
def test_results_that_are_not_whole_are_not_scored(whole, tmp_path, capsys, change, sentence):
    shutil.copytree(whole, tmp_path / "results")
    path = tmp_path / "results" / "mine" / "shuffled" / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    text = change(json.loads(lines[0]), lines)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert main(["reproduce", str(tmp_path / "results")]) == 3
    assert sentence in capsys.readouterr().err


def test_items_without_a_reference_are_not_scored(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "results")
    for path in (tmp_path / "results").rglob("predictions.jsonl"):
        first, *others = path.read_text().splitlines(keepends=True)
        path.write_text(broken(json.loads(first), references=[]) + "".join(others))
    assert main(["reproduce", str(tmp_path / "results")]) == 3
    assert "vqa needs references, and sample test-000000.tar:test-000000?0 has none" in capsys.readouterr().err


def test_no_predictions_are_not_scored(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "results")
    for path in (tmp_path / "results").rglob("predictions.jsonl"):
        path.write_text("")
    assert main(["reproduce", str(tmp_path / "results")]) == 3
    assert "no predictions; run `arlow evaluate` again" in capsys.readouterr().err


def test_half_written_results_are_named(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "results")
    (tmp_path / "results" / "mine" / "metrics.json").unlink()
    assert main(["reproduce", str(tmp_path / "results")]) == 3
    assert "metrics.json is missing, so its folder is half written" in capsys.readouterr().err
    assert main(["reproduce", str(tmp_path)]) == 3
    assert "holds no results" in capsys.readouterr().err


def test_a_figure_that_was_changed_is_unequal(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "results")
    path = tmp_path / "results" / "mine" / "metrics.json"
    result = json.loads(path.read_text())
    result["scores"]["metrics"]["accuracy"]["groups"]["all"]["systems"]["model"]["estimate"] += 1e-8
    path.write_text(json.dumps(result))
    assert main(["reproduce", str(tmp_path / "results")]) == 3
    told = capsys.readouterr()
    *rows, total = told.out.splitlines()
    (different,) = (row for row in rows if row.startswith("UNEQUAL"))
    assert different.startswith("UNEQUAL   mine: accuracy, all, model, estimate  ") and "(was " in different
    assert len(rows) > 20 and total == f"{len(rows) - 1} equal, 1 unequal, 0 not here"
    (sentence,) = told.err.splitlines()
    assert f"1 of {len(rows)} figures and hashes are unequal, the first is mine: accuracy, all, model" in sentence


def test_figures_that_another_processor_has_added_up_are_equal(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "results")
    path = tmp_path / "results" / "mine" / "metrics.json"
    result = json.loads(path.read_text())
    for interval in result["scores"]["metrics"]["accuracy"]["groups"]["all"]["systems"].values():
        interval |= {end: interval[end] + 1e-15 for end in ("estimate", "low", "high")}
    path.write_text(json.dumps(result))
    assert main(["reproduce", str(tmp_path / "results")]) == 0
    assert ", 0 unequal, " in capsys.readouterr().out


def test_what_a_figure_was_made_of_and_is_gone_is_told(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "results")
    path = tmp_path / "results" / "mine" / "metrics.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"model": told["model"] | {"path": "gone/hf"}}))
    assert main(["reproduce", str(tmp_path / "results")]) == 0
    *rows, total = capsys.readouterr().out.splitlines()
    (absent,) = (row for row in rows if row.startswith("not here"))
    assert absent.startswith("not here  mine: model gone/hf  ") and total.endswith(", 0 unequal, 1 not here")


def fields_of(row):
    return set(json.loads(line_of(row)))


def test_a_line_holds_the_fields_that_mean_something_for_it(whole):
    always = {"id", "image", "prompt", "output", "references"}
    lines = [json.loads(line) for line in (whole / "mine" / "model" / "predictions.jsonl").read_text().splitlines()]
    assert {"kind" in line for line in lines} == {True, False}  # one of the two questions has one
    assert all(line.keys() - {"kind"} == always | {"log_probability"} for line in lines)
    prior = (whole / "mine" / "question_prior" / "predictions.jsonl").read_text().splitlines()
    assert all(json.loads(line).keys() - {"kind"} == always for line in prior)
    document = PredictionRow(id="a", image="a", prompt="", output="", references=[], tokens=0, bytes=0)
    assert fields_of(document) == always | {"tokens", "bytes"}


def test_the_fields_of_a_line_are_those_that_are_documented():
    text = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    (table,) = re.findall(r"\| field \|.*?\n\n", text, re.DOTALL)
    documented = [
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert sorted(documented) == sorted(field.name for field in fields(PredictionRow))


def test_rows_are_read_as_they_were_kept(tmp_path):
    row = PredictionRow(id="a", image="b", prompt='"\u2028\n', output="é 😀", references=["x"], log_probability=-0.1)
    kept = PredictionFile(tmp_path, "model", ["a", "c"])
    kept.add([row])
    assert PredictionFile(tmp_path, "model", ["a", "c"]).rows == {"a": row}


class Counted(str):
    """A text that counts how often texts of its kind are compared."""

    __slots__ = ()
    __hash__ = str.__hash__
    compared = 0

    def __eq__(self, other):
        Counted.compared += 1
        return str.__eq__(self, other)


def test_a_row_that_is_added_is_not_compared_with_all_before_it(tmp_path):
    number = 300
    kept = PredictionFile(tmp_path, "model", [Counted(place) for place in range(number)])
    for place in range(number):
        kept.add([PredictionRow(id=Counted(place), image="a", prompt="", output="", references=[])])
    assert kept.is_ordered and Counted.compared < 10 * number


def test_predictions_from_features_of_another_precision_are_refused(whole, evaluate, capsys):
    assert evaluate(whole, **{"features-dtype": "float32"}) == 3
    assert "holds predictions of another run (--features-dtype was 'float16', is 'float32')" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"references": ["x"]}, {"image": "x"}, {"prompt": "x"}, {"kind": "x"}])
def test_predictions_of_items_that_the_data_do_not_hold_so_are_refused(whole, evaluate, tmp_path, capsys, change):
    shutil.copytree(whole, tmp_path / "results")
    for path in (tmp_path / "results").rglob("predictions.jsonl"):
        first, *others = path.read_text().splitlines(keepends=True)
        path.write_text(broken(json.loads(first), **change) + "".join(others))
    assert evaluate(tmp_path / "results") == 3
    assert "has another image, question or reference than the data give it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"choices": ["a"]}, "predictions.jsonl:1: no prediction (choices is no object)"),
        (
            {"log_probability": float("nan")},
            "jsonl:1: no prediction (a log-probability is no finite number",
        ),
    ],
)
def test_log_probabilities_that_are_none_are_named(whole, tmp_path, capsys, change, sentence):
    shutil.copytree(whole, tmp_path / "results")
    path = tmp_path / "results" / "mine" / "model" / "predictions.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text(broken(json.loads(first), **change) + "".join(others))
    assert main(["reproduce", str(tmp_path / "results")]) == 3
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("settings", [[1], "x", 5, {}])
def test_settings_that_say_nothing_are_no_traceback(tmp_path, settings):
    (tmp_path / "run.json").write_text(json.dumps({"task": "a", "settings": settings}))
    with pytest.raises(DataError, match=r"holds predictions of another run \(task was another\)"):
        start(tmp_path, {"task": "b"}, {"task": "told"}, {})


def test_data_at_an_address_are_those_of_the_folder(whole, evaluate, folder, tmp_path):
    assert evaluate(tmp_path / "results", data=f"file://{folder}/data/test-{{000000..000000}}.tar") == 0
    assert scores_of(tmp_path / "results") == scores_of(whole)
