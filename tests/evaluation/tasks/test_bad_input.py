"""What cannot be evaluated: one sentence each, before the model writes anything."""

import json
import os
import shutil

import pytest
import yaml

from arlow_vl.cli import main
from arlow_vl.data.trained_prompts import TrainedPrompts
from arlow_vl.evaluation.tasks.predictions import lock, read_rows
from arlow_vl.evaluation.tasks.task import SHIPPED
from tests.evaluation.tasks.conftest import image_bytes, lines, write
from tests.evaluation.tasks.made_sets import COCO_NAME, shard
from tests.evaluation.tasks.test_resume import TASK
from tests.outside_data import tar_of
from tests.tiny_runs import write_text_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    return write(folder, {"data/test-000000.tar": shard("test"), "mine.yaml": yaml.safe_dump(TASK)})


@pytest.fixture
def evaluate(folder, model_folder, tmp_path, capsys):
    """Runs the command; gives its status and what it said."""

    def run(**options):
        values = {"model": model_folder, "task": folder / "mine.yaml", "data": folder / "data", "limit": 4}
        values |= {"features": folder / "features", "output": tmp_path / "results"} | options
        status = main(["evaluate", *(str(word) for name, value in values.items() for word in (f"--{name}", value))])
        said = capsys.readouterr()
        return status, said.err if status else said.out

    return run


def test_data_that_are_not_there_are_named(evaluate, tmp_path):
    status, said = evaluate(data=tmp_path)
    assert status == 3 and f"no such file or folder: {tmp_path}/test-*.tar" in said


def test_a_set_with_an_unusable_sample_is_not_scored(evaluate, tmp_path):
    members = [("a.png", image_bytes("red")), ("a.json", b'{"questions": [{"question": "q"}]}'), ("a.txt", b"a")]
    write(tmp_path, {"test-0.tar": tar_of(*members)})
    status, said = evaluate(data=tmp_path)
    assert status == 3 and "missing_answer 1" in said


def test_an_image_that_cannot_be_decoded_is_named(evaluate, tmp_path):
    questions = b'{"questions": [{"question": "q", "answer": "a"}]}'
    good = [("b.png", image_bytes("red")), ("b.json", questions), ("b.txt", b"b")]
    write(tmp_path, {"test-0.tar": tar_of(("a.png", b"\x89PNG no"), ("a.json", questions), ("a.txt", b"a"), *good)})
    status, said = evaluate(data=tmp_path)
    assert status == 3 and "1 image cannot be used, that of test-0.tar:a first" in said


def test_a_prompt_that_is_longer_than_the_models_positions_is_refused(evaluate, tmp_path):
    asked = json.dumps({"questions": [{"question": "why " * 1100, "answer": "a"}]}).encode()
    members = [m for key in ("blue", "red") for m in ((f"{key}.png", image_bytes(key)), (f"{key}.json", asked))]
    write(tmp_path, {"test-0.tar": tar_of(*members)})
    status, said = evaluate(data=tmp_path)
    assert status == 3 and "and the model has 1,024 positions; leave long questions out, or copy the task" in said
    assert not list((tmp_path / "results").rglob("predictions.jsonl"))


def test_an_answer_to_be_compared_that_is_longer_than_the_models_positions_is_refused(evaluate, tmp_path):
    choices = {"decoding": None, "likelihood": {"choices": ["a", "b " * 1100]}}
    task = {name: value for name, value in (TASK | choices).items() if value is not None}
    write(tmp_path, {"long.yaml": yaml.safe_dump(task)})
    status, said = evaluate(task=tmp_path / "long.yaml")
    assert status == 3 and "its answer may have 2,2" in said and "and the model has 1,024 positions" in said
    assert not list((tmp_path / "results").rglob("predictions.jsonl"))


def test_a_set_without_the_kind_that_is_asked_for_is_refused(evaluate, tmp_path):
    write(tmp_path, {"test-0.tar": tar_of(("a.png", image_bytes("red")), ("a.txt", b"a caption"))})
    status, said = evaluate(data=tmp_path)
    assert status == 3 and "no sample has a question, which task mine asks for" in said


def test_one_image_is_too_few_for_the_controls(evaluate, tmp_path):
    line = json.dumps({"question_id": 1, "image": COCO_NAME.format(1), "text": "Is it?", "label": "yes"})
    write(tmp_path, {"coco_pope_random.json": line, COCO_NAME.format(1): image_bytes("red")})
    status, said = evaluate(task="pope-random", data=tmp_path)
    assert status == 3 and "two images at least" in said
    assert not list(tmp_path.glob("results/pope-random/*"))


def test_questions_without_an_image_are_answered_among_those_with_one(evaluate, tmp_path):
    members = [(f"{key}.png", image_bytes(key)) for key in ("blue", "green", "red")]
    for key, shown in {"blue": 1, "green": 1, "none": 0, "red": 1}.items():
        content = [{"type": "image"}] * shown + [{"type": "text", "text": "What is it?"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": key}]
        members.append((f"{key}.json", json.dumps({"texts": [{"messages": messages, "task": "question"}]}).encode()))
    write(tmp_path, {"test-0.tar": tar_of(*sorted(members))})
    controls = ["shuffled", "blank_image", "no_image", "most_frequent", "nearest_neighbour"]
    write(tmp_path, {"task.yaml": yaml.safe_dump(TASK | {"metrics": ["exact match"], "controls": controls})})
    status, said = evaluate(task=tmp_path / "task.yaml", data=tmp_path)
    assert status == 0, said
    outputs = [read_rows(tmp_path / "results" / "mine" / name / "predictions.jsonl") for name in ("model", *controls)]
    assert [row.references for row in outputs[0]] == [["blue"], ["green"], ["none"], ["red"]]
    assert len({rows[2].output for rows in outputs[:4]}) == 1  # who is shown nothing says one thing


def test_answers_that_are_neither_yes_nor_no_are_refused_by_pope(evaluate, tmp_path):
    entries = [
        {"question_id": n, "image": COCO_NAME.format(n), "text": "Is it?", "label": label}
        for n, label in enumerate(("yes", "maybe"))
    ]
    pictures = {COCO_NAME.format(n): image_bytes(colour) for n, colour in enumerate(("red", "blue"))}
    write(tmp_path, {"coco_pope_random.json": lines(entries), **pictures})
    status, said = evaluate(task="pope-random", data=tmp_path)
    assert (
        status == 3 and "sample COCO_val2014_000000000001.jpg?0 has the reference 'maybe'; POPE takes yes or no" in said
    )


def test_a_checkpoint_without_a_processor_is_refused(evaluate, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "hf")
    for name in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / "hf" / name).unlink(missing_ok=True)
    status, said = evaluate(model=tmp_path / "hf")
    assert status == 4 and f"{tmp_path}/hf: the processor and its tokenizer cannot be used" in said


def test_a_text_model_is_refused_where_images_are_shown(evaluate, tmp_path):
    status, said = evaluate(model=write_text_checkpoint(tmp_path / "text"))
    assert status == 4 and "holds a model of type 'arlow', expected 'arlow_vl'" in said


def test_a_text_model_reads_text_in_windows_that_it_has_positions_for(evaluate, tmp_path):
    model = write_text_checkpoint(tmp_path / "text")
    path = tmp_path / "validation.jsonl"
    path.write_text(lines([{"text": "The cat sat on a mat and saw one big red dog run. " * 5}]))
    status, said = evaluate(model=model, task="text-perplexity", data=path)
    assert status == 3 and "reads windows of 512 tokens and the model has 64 positions" in said
    task = yaml.safe_load((SHIPPED / "text-perplexity.yaml").read_text())
    write(tmp_path, {"short.yaml": yaml.safe_dump(task | {"perplexity": {"window": 32, "stride": 8}})})
    status, said = evaluate(model=model, task=tmp_path / "short.yaml", data=path)
    assert status == 0 and "bits per byte" in said


def test_a_set_that_overlaps_training_is_warned_of_and_counted(evaluate, folder, tmp_path):
    status, said = evaluate(training=folder / "data" / "test-000000.tar")
    assert status == 0
    assert "warning: 4 of 4 items of mine show an image of the training data" in said
    metrics = json.loads((tmp_path / "results" / "mine" / "metrics.json").read_text())
    sources = [str(folder / "data" / "test-000000.tar")]
    assert metrics["overlap"] == {"items": 4, "first": "test-000000.tar:test-000001?0", "sources": sources}
    assert metrics["prior"] == "training data"


def test_a_task_that_asks_otherwise_than_training_did_is_told_so_everywhere(evaluate, folder, model_folder, tmp_path):
    short = "Answer in one word."
    shutil.copytree(model_folder, tmp_path / "hf")
    TrainedPrompts({"question": {short: 90, "": 10}, "caption": {"": 7}}).save_pretrained(tmp_path / "hf")
    told = "asked otherwise than in training: with 'Be brief.' behind the question, where training mostly had "
    told += "'Answer in one word.' (of 100 texts looked at); scores may be far lower for it"
    for instruction, expected in {"Be brief.": told, short: "", "": ""}.items():
        output = tmp_path / f"results of {instruction}"
        write(tmp_path, {"asks.yaml": yaml.safe_dump(TASK | {"instruction": instruction})})
        status, said = evaluate(model=tmp_path / "hf", task=tmp_path / "asks.yaml", output=output)
        assert status == 0 and said.count("asked otherwise") == (2 if expected else 0)
        assert (f"\nwarning: {told}\n" in said) == bool(expected)
        assert json.loads((output / "mine" / "metrics.json").read_text())["asked_otherwise"] == expected
        assert main(["report", str(output), "--heat", "0"]) == 0
        page = (output / "report.html").read_text(encoding="utf-8")
        assert page.count("The model was asked otherwise than in training") == bool(expected)
    (tmp_path / "hf" / "trained_prompts.json").write_text("[]")
    status, said = evaluate(model=tmp_path / "hf", output=tmp_path / "other")
    assert status == 4 and "hf/trained_prompts.json: holds no counts of prompts; copy it again, or remove it" in said


def test_a_device_that_is_not_there_is_named(evaluate):
    status, said = evaluate(device="cud")
    assert status == 4 and "device cud cannot be used" in said


def test_half_precision_is_run_and_told(evaluate, tmp_path):
    status, _ = evaluate(precision="bfloat16")
    assert status == 0
    assert json.loads((tmp_path / "results" / "mine" / "metrics.json").read_text())["precision"] == "bfloat16"


def test_a_task_must_be_named(model_folder, tmp_path, capsys):
    assert main(["evaluate", "--model", str(model_folder), "--output", str(tmp_path / "results")]) == 2
    assert "the following arguments are required: --task" in capsys.readouterr().err


def test_a_task_named_twice_is_refused(evaluate, folder, model_folder, tmp_path, capsys):
    words = ["--model", model_folder, "--output", tmp_path / "results", "--data", folder / "data"]
    words += ["--task", folder / "mine.yaml", "--task", folder / "mine.yaml"]
    assert main(["evaluate", *map(str, words)]) == 3
    assert "two tasks have one name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"decoding": {"max_new_tokens": 10**12}},
            "lets the model write 1,000,000,000,000 tokens and it has 1,024",
        ),
        ({"metrics": ["POPE"]}, "has the reference 'red'; POPE takes yes or no"),
        (
            {"kind": "caption", "metrics": ["BLEU"], "controls": ["shuffled", "class_means"]},
            "class_means needs captions of training data; give --training",
        ),
    ],
)
def test_what_could_not_be_scored_is_refused_before_the_model_answers(evaluate, tmp_path, changes, sentence):
    write(tmp_path, {"bad.yaml": yaml.safe_dump(TASK | changes)})
    status, said = evaluate(task=tmp_path / "bad.yaml")
    assert status == 3 and sentence in said
    assert not list(tmp_path.glob("results/mine/*"))


def test_training_that_a_task_names_may_be_absent_and_that_is_said(evaluate, folder, tmp_path):
    write(tmp_path, {"odd.yaml": yaml.safe_dump(TASK | {"training": "train-{000..119}.tar"})})
    status, said = evaluate(task=tmp_path / "odd.yaml")
    told = "the training data of mine; its priors come from the set itself (see --training)"
    assert status == 0 and f"warning: nothing is at {folder}/data/train-{{000..119}}.tar, {told}" in said
    metrics = json.loads((tmp_path / "results" / "mine" / "metrics.json").read_text())
    assert metrics["prior"] == "the other images of the set"
    assert f"--task {tmp_path}/odd.yaml" in metrics["command"]


def test_a_result_folder_that_another_process_writes_is_left_alone(evaluate, tmp_path):
    with lock(tmp_path / "results"):
        status, said = evaluate()
    assert status == 3 and f"is being written by process {os.getpid()}; wait for it" in said
