"""What is not as it was when a run goes on, or not there when it starts, is named before anything is computed."""

import json
import os
import time
from pathlib import Path

import pytest
import torch._inductor.cpp_builder as cpp_builder

from arlow_vl.cli import main
from arlow_vl.training.checkpoint_names import checkpoints
from tests.tiny_runs import write_text_recipe
from tests.training.test_run import Interrupt, start


@pytest.fixture
def stopped(tmp_path) -> tuple[str, Path]:
    """A recipe, and its run after four of twelve steps."""
    config, run = str(write_text_recipe(tmp_path)), tmp_path / "run"
    assert start(config, run, "--run.checkpoint_every", "4", interrupt=Interrupt("batch ends", 4)) == 1
    return config, run


def cut(path: Path, first: int, count: int) -> None:
    lines = path.read_text().splitlines(True)
    path.write_text("".join(lines[:first] + lines[first + count :]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda run: (run / "steps.jsonl").unlink(),
            "steps.jsonl lacks 4 of the 4 steps that are done, the first is 1;",
        ),
        (
            lambda run: cut(run / "steps.jsonl", 2, 9),
            "steps.jsonl lacks 2 of the 4 steps that are done, the first is 3;",
        ),
        (
            lambda run: cut(run / "steps.jsonl", 1, 1),
            "steps.jsonl lacks 1 of the 4 steps that are done, the first is 2;",
        ),
        (
            lambda run: (run / "metrics.csv").unlink(),
            "metrics.csv lacks 4 of the 4 steps that are done, the first is 1;",
        ),
        (
            lambda run: cut(run / "metrics.csv", 2, 9),
            "metrics.csv lacks 3 of the 4 steps that are done, the first is 2;",
        ),
    ],
    ids=["no steps", "steps cut", "a step gone", "no metrics", "metrics cut"],
)
def test_a_log_that_lacks_steps_is_told_and_the_run_goes_on(stopped, capsys, change, sentence):
    config, run = stopped
    change(run)
    assert start(config, run) is None
    assert sentence in capsys.readouterr().err
    assert [json.loads(line)["step"] for line in (run / "steps.jsonl").read_text().splitlines()][-1] == 12


def test_a_whole_log_is_not_told_of(stopped, capsys):
    config, run = stopped
    assert start(config, run) is None
    assert "lacks" not in capsys.readouterr().err


def test_metrics_without_names_of_columns_are_refused(stopped):
    config, run = stopped
    cut(run / "metrics.csv", 0, 1)
    with pytest.raises(
        ValueError, match=r"metrics.csv: line 1 is not as the run wrote it \(it has no names of columns"
    ):
        start(config, run)


@pytest.mark.parametrize("use", ["train", "validation"])
def test_a_text_with_other_words_of_the_same_length_is_named(stopped, tmp_path, capsys, use):
    config, run = stopped
    path = tmp_path / f"{use}.jsonl"
    path.write_text(path.read_text().replace("cat", "dog"))
    os.utime(path, (time.time() + 9, time.time() + 9))
    kind = "training" if use == "train" else use
    sentence = f"source {use} ({path}) holds other {kind} data than at the last start of the run"
    words = ["fit", "--config", config, "--run_dir", str(run)]
    assert main(words) == (2 if use == "train" else 0)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("arlow: ")]
    assert sentence in line
    if use == "train":
        assert checkpoints(run / "checkpoints")[0].name == "step-000004.ckpt"


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_no_compiler_is_told_before_anything_is_computed(tmp_path, capsys, monkeypatch, more):
    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_builder.cpp_compiler_search.cache_clear()
    config = str(write_text_recipe(tmp_path))
    try:
        assert main(["fit", "--config", config, "--run.compile", "true", *more]) == 2
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()
    assert "arlow: run.compile needs a C++ compiler, and g++ is not on the PATH" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_more_processes_than_the_machine_could_serve_are_not_started(tmp_path, capsys, more):
    config, many = str(write_text_recipe(tmp_path)), str(1000 * (os.cpu_count() or 1))
    words = ["--run.engine.devices", many, "--run.accumulate_grad_batches", many, "--run.engine.accelerator", "cpu"]
    assert main(["fit", "--config", config, *words, *more]) == 2
    assert "000, a process each, but there are" in capsys.readouterr().err
