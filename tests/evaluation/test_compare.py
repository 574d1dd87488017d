"""Two result folders side by side, and what a difference would need."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from arlow_vl.cli import main
from arlow_vl.errors import DataError
from arlow_vl.evaluation import compare
from arlow_vl.evaluation.compare import compare_folders, power_of_folders, sums_of_models
from arlow_vl.evaluation.tasks import predictions
from arlow_vl.evaluation.tasks.evaluate import score
from arlow_vl.evaluation.tasks.predictions import MODEL, PredictionFile, PredictionRow
from arlow_vl.evaluation.tasks.results import read_results
from arlow_vl.evaluation.tasks.task import load_task
from arlow_vl.models.folder_files import sha256_of_file
from tests.evaluation.made_results import CAPTIONS as TASK
from tests.evaluation.made_results import QUESTIONS, but_teal, write_data, write_results


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The first model is right on captions, the second says the same of every image; both answer questions alike."""
    folder = tmp_path_factory.mktemp("compare")
    data = write_data(folder / "data")
    for name, said in (("right", {}), ("blind", {"model": "a red dog"})):
        write_results(folder / name, data, TASK, said)
        write_results(folder / name, data, QUESTIONS, {"model": but_teal})
    return folder


def test_the_values_of_both_and_their_difference_are_the_scores(folders):
    found = {(c.task, c.metric): c for c in compare_folders(folders / "blind", folders / "right")}
    scores = {
        name: {one.task.name: one.metrics_json["scores"] for one in read_results(folders / name)}
        for name in ("blind", "right")
    }
    for metric in ("CIDEr-D", "BLEU-1"):
        one = found[TASK, metric]
        values = [
            scores[n][TASK]["metrics"][metric]["groups"]["all"]["systems"]["model"]["estimate"]
            for n in ("blind", "right")
        ]
        assert (one.first, one.second) == pytest.approx(tuple(values))
        assert one.test.difference.estimate == pytest.approx(values[1] - values[0])
        assert one.test.difference.is_outside_zero and one.test.t_test_p < 0.01 and one.test.effect > 1
    answers = {metric for task, metric in found if task == QUESTIONS}
    assert answers == {"accuracy", "accuracy, other", "accuracy, yes/no", "accuracy, where the prior is wrong"}
    assert found[QUESTIONS, "accuracy"].test.bootstrap_p == 1


def test_the_order_of_the_samples_does_not_matter(folders, tmp_path):
    shutil.copytree(folders / "blind", tmp_path / "turned")
    for system in (tmp_path / "turned" / TASK).rglob("*.jsonl"):
        system.write_text("\n".join(reversed(system.read_text().splitlines())) + "\n")
    scored_again(tmp_path / "turned")
    assert compare_folders(tmp_path / "turned", folders / "right", task=TASK)[0].second == pytest.approx(7.5)
    same = compare_folders(tmp_path / "turned", folders / "blind", task=TASK)
    assert [comparison.test.difference.estimate for comparison in same] == [0] * 5


def test_another_instruction_of_the_same_task_is_said(folders, monkeypatch, capsys):
    words = ["compare", str(folders / "blind"), str(folders / "right"), "--task", TASK]
    assert main(words) == 0
    assert "asked with another" not in capsys.readouterr().out
    read = compare.read_results

    def of_another(folder):
        results = read(folder)
        return (
            [replace(one, task=replace(one.task, instruction="Be short.")) for one in results]
            if (folder.name == "right")
            else results
        )

    monkeypatch.setattr(compare, "read_results", of_another)
    monkeypatch.setattr(compare, "refuse_changed", lambda results: None)
    assert main(words) == 0
    assert "the second was asked with another instruction" in capsys.readouterr().out


def test_the_command_prints_a_table(folders, capsys):
    assert main(["compare", str(folders / "blind"), str(folders / "right"), "--task", TASK]) == 0
    out = capsys.readouterr().out
    (line,) = re.findall(r"^CIDEr-D, 10 at most .*$", out, re.MULTILINE)
    assert re.split(" {2,}", line)[1] == "12" and "7.500" in line and "] *" in line
    assert QUESTIONS not in out


def test_shares_are_in_per_cent_as_evaluate_prints_them(folders, capsys):
    pair = folders / "blind", folders / "right"
    assert main(["compare", *map(str, pair), "--task", QUESTIONS]) == 0
    (line,) = re.findall(r"^accuracy, % .*$", capsys.readouterr().out, re.MULTILINE)
    found = next(one for one in compare_folders(*pair, task=QUESTIONS) if one.metric == "accuracy")
    _, _, first, second, difference, *_ = re.split(" {2,}", line)
    assert (first, second) == (f"{100 * found.first:.1f}", f"{100 * found.second:.1f}")
    assert float(first) > 10 and difference.startswith("+0.0 [")


def test_the_folder_of_one_task_is_compared_like_the_one_that_holds_it(folders, capsys):
    pair = [folders / "blind" / TASK, folders / "right" / TASK]
    assert compare_folders(*pair) == compare_folders(folders / "blind", folders / "right", task=TASK)
    assert main(["reproduce", str(pair[0])]) == 0
    assert "1 not here" in capsys.readouterr().out  # the model, which never was


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (
            "{folders}/right/captions-test-known/model",
            "is a part of the results in {folders}/right/captions-test-known",
        ),
        (
            "{folders}/right/captions-test-known/model/predictions.jsonl",
            "is a part of the results in {folders}/right/captions-test-known; name that folder",
        ),
        (
            "{folders}",
            "holds no results itself, folders inside it do; name one of them, as {folders}/blind, {folders}/",
        ),
        ("{folders}/data", "holds no results (<task>/run.json); run `arlow evaluate` first"),
    ],
)
@pytest.mark.parametrize(
    "command", ["compare {place} {folders}/right", "power {place} --difference 1", "reproduce {place}"]
)
def test_a_path_beside_the_right_one_is_told_which_is_right(folders, place, sentence, command, capsys):
    words = command.replace("{place}", place).format(folders=folders).split()
    assert main(words) == 3
    assert sentence.format(folders=folders) in capsys.readouterr().err


def test_a_comparison_of_few_images_is_marked(folders, capsys):
    assert main(["compare", str(folders / "blind"), str(folders / "right")]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    (of_captions,) = [block for block in blocks if block.startswith(TASK)]
    (of_questions,) = [block for block in blocks if block.startswith(QUESTIONS)]
    assert "(few)" not in of_captions  # twelve images
    assert re.search(r"^accuracy, % +3 \(few\) ", of_questions, re.MULTILINE)
    assert of_questions.endswith("\n(few): fewer than 10 images, a score that says little")
    assert main(["power", str(folders / "blind"), "--difference", "0.1"]) == 0
    assert "3 (few)" in (out := capsys.readouterr().out) and "\n(few): fewer than 10 images" in out


def test_what_a_single_image_has_a_sample_of_is_left_out(folders):
    captions = iter(['the word "noon" above a red cat', *["a red car left of a blue cat"] * 11])
    (results,) = [one for one in read_results(folders / "blind") if one.task.name == TASK]
    rows = [replace(row, references=[next(captions)]) for row in results.systems[MODEL]]
    task = replace(results.task, metrics=("scenes",))
    measures, (sums,) = sums_of_models([replace(results, task=task, systems={MODEL: rows})])
    assert "word" not in measures and measures.keys() == sums.keys() >= {"thing", "relation"}


def test_the_command_says_what_a_difference_needs(folders, capsys):
    words = ["power", str(folders / "blind"), str(folders / "right"), "--difference", "0.1", "--task", TASK]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "images for 0.1" in out and "power of 80%" in out
    assert main(["power", str(folders / "blind"), "--difference", "0.1"]) == 0


def test_a_difference_that_a_metric_cannot_have_needs_no_number_of_images(folders, capsys):
    """CIDEr-D goes to 10, an accuracy, which `arlow evaluate` prints as per cent, to 1."""
    assert main(["power", str(folders / "blind"), "--difference", "2"]) == 0
    out = capsys.readouterr().out
    needs = {
        line.split()[1]: re.split(r"  +", line)[4] for line in out.splitlines() if line.startswith((TASK, QUESTIONS))
    }
    assert needs["CIDEr-D"].isdigit() and needs["accuracy"] == "-" and "\n-: the metric has no such difference" in out


def test_images_without_a_spread_say_nothing_of_what_a_difference_needs(folders):
    of_right = {
        one.metric: one for one in power_of_folders(folders / "right", None, difference=0.1, power=0.8, task=TASK)
    }
    assert of_right["BLEU-1"].spread == 0 and of_right["BLEU-1"].required is None


def test_two_folders_tell_the_spread_and_one_takes_the_other_for_unrelated(folders):
    settings = {"difference": 0.1, "power": 0.8, "task": TASK}
    pair = power_of_folders(folders / "blind", folders / "right", **settings)[0]
    alone = power_of_folders(folders / "blind", None, **settings)[0]
    assert pair.images == alone.images == 12
    # The right model scores 7.5 everywhere, so the spread of the difference is the blind one's alone.
    assert alone.spread == pytest.approx(2**0.5 * pair.spread)
    assert alone.required == pytest.approx(2 * pair.required, rel=0.01)


def other_task(folder):
    (folder / TASK).rename(folder / "captions-test-novel")
    path = folder / "captions-test-novel" / "metrics.json"
    path.write_text(path.read_text().replace('"name": "captions-test-known"', '"name": "captions-test-novel"'))


def fewer_samples(folder):
    for system in (folder / TASK).rglob("*.jsonl"):
        system.write_text("".join(line + "\n" for line in system.read_text().splitlines()[:-2]))


def other_references(folder):
    for system in (folder / TASK).rglob("*.jsonl"):
        system.write_text(system.read_text().replace('"a small cat"]', '"a tiny cat"]'))


def other_names(folder):
    for system in (folder / TASK).rglob("*.jsonl"):
        system.write_text(system.read_text().replace("image-11", "image-12"))


def twice_the_same(folder):
    for system in (folder / TASK).rglob("*.jsonl"):
        system.write_text(system.read_text().replace("image-11", "image-10"))


def scored_again(folder):
    """As `arlow evaluate` leaves a folder: metrics.json is of the predictions that lie beside it."""
    path = folder / TASK / "metrics.json"
    told = json.loads(path.read_text())
    told["predictions"] = {
        name: sha256_of_file(folder / TASK / name / "predictions.jsonl") for name in told["predictions"]
    }
    path.write_text(json.dumps(told))


def other_images(folder):
    for system in (folder / TASK).rglob("*.jsonl"):
        rows = [json.loads(line) for line in system.read_text().splitlines()]
        rows[0]["image"] = rows[1]["image"]
        system.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_words(folder):
    path = folder / TASK / "model" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"output": "a ', '"output": "the ', 1))


def half_written(folder):
    (folder / TASK / "metrics.json").unlink()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (other_task, "holds the task captions-test-(known|novel) and .* does not; compare one that both hold"),
        (
            fewer_samples,
            "task captions-test-known: one alone holds 2 samples, the first is test-known-000000.tar:image-10; ",
        ),
        (
            other_references,
            "sample test-known-000000.tar:image-06 has other references; evaluate both on the same data",
        ),
        (other_names, "one alone holds 2 samples, the first is test-known-000000.tar:image-11"),
        (twice_the_same, "id 'test-known-000000.tar:image-10' comes twice; keep one"),
        (other_images, "sample test-known-000000.tar:image-00 has another image, question or kind; evaluate both"),
        (half_written, r"metrics\.json is missing, so its folder is half written"),
    ],
)
def test_folders_that_do_not_go_together_are_refused(folders, tmp_path, change, sentence):
    shutil.copytree(folders / "blind", tmp_path / "changed")
    change(tmp_path / "changed")
    if change in (fewer_samples, other_references, other_names, other_images):
        scored_again(tmp_path / "changed")
    with pytest.raises(DataError, match=sentence):
        compare_folders(folders / "right", tmp_path / "changed")


def test_predictions_that_were_changed_after_they_were_scored_are_not_compared(folders, tmp_path):
    shutil.copytree(folders / "right", tmp_path / "changed")
    other_words(tmp_path / "changed")
    for verb in (
        lambda: compare_folders(folders / "right", tmp_path / "changed"),
        lambda: power_of_folders(tmp_path / "changed", None, difference=0.1, power=0.8),
    ):
        with pytest.raises(DataError, match=r"other predictions than those that metrics\.json scores"):
            verb()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compare", "nowhere", "{right}"], "nowhere is no folder; `arlow evaluate --output FOLDER` writes one"),
        (["compare", "{right}", "{blind}", "--task", "vqa"], "holds no task vqa; it holds captions-test-known, easy"),
        (["power", "{right}", "--difference", "0"], "the difference must be above 0, in the metric's own scale, got 0"),
        (["power", "{right}", "--difference", "1", "--power", "2"], "from 0.5 to below 1, such as 0.8, got 2.0"),
        (
            ["power", "{right}", "--difference", "20"],
            "no metric here can differ by 20, 10 is the most; shares go from 0",
        ),
        (["power", "{right}", "--difference", "2", "--task", "easy-vqa"], "can differ by 2, 1 is the most"),
    ],
)
def test_a_command_that_cannot_be_run_says_so_in_a_sentence(folders, words, sentence, capsys):
    paths = {name: folders / name for name in ("right", "blind")}
    assert main([word.format(**paths) for word in words]) in (2, 3)
    shown = capsys.readouterr().err
    assert sentence in shown and shown.count("\n") == 1


def write_text_results(folder, tokens):
    """Twelve documents of forty bytes, of which the model cuts each into so many tokens."""
    task = load_task("text-perplexity")
    for system in (MODEL, *task.controls):
        kept = PredictionFile(folder / task.name, system, [f"d:{number}" for number in range(12)])
        kept.add(
            PredictionRow(
                id=name,
                image=name,
                prompt="",
                output="",
                references=[],
                tokens=tokens,
                bytes=40,
                log_probability=-30.0 - tokens - number / 9,
            )
            for number, name in enumerate(kept.ids)
        )
    predictions.write_json(folder / task.name / predictions.RUN, {})
    score(folder / task.name, task, {})
    return folder


def test_perplexities_of_other_tokens_are_not_tested_and_documents_are_called_so(tmp_path, capsys):
    one, same, other = (write_text_results(tmp_path / str(n), of) for n, of in enumerate((10, 10, 12)))
    assert main(["compare", str(one), str(same)]) == 0
    assert "tokenizers" not in capsys.readouterr().out
    assert main(["compare", str(one), str(other)]) == 0
    found = capsys.readouterr().out
    assert "the models have other tokenizers, and perplexity is of their tokens: compare bits per byte" in found
    rows = {cells[0]: cells[1:] for cells in (re.split(" {2,}", line) for line in found.splitlines())}
    assert rows["metric"][0] == "documents" and "images" not in found
    assert "*" not in rows["perplexity"][3] and rows["perplexity"][4:] == ["-"] * 3
    assert "*" in rows["bits per byte"][3] and "-" not in rows["bits per byte"][4:]
    assert main(["power", str(one), str(other), "--difference", "0.1"]) == 0
    needs = capsys.readouterr().out
    assert re.search(r"perplexity +12 +- +- +-\n", needs) and "documents for 0.1" in needs and "images" not in needs
