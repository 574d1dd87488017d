"""What `arlow fit` refuses without a model it refuses before the libraries that take seconds are loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from arlow_vl.cli import main
from arlow_vl.training.recipe import to_plain
from arlow_vl.training.recipe_parsing import parse_recipe
from tests.evaluation.tasks.test_early_refusals import RUN
from tests.tiny_runs import write_text_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe, and the folder of its run, of which four of twelve steps are done."""
    folder = tmp_path_factory.mktemp("early")
    config = write_text_recipe(folder)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "step-000004.ckpt").touch()
    recipe = to_plain(parse_recipe(["--config", str(config)]))
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "file").touch()
    return folder


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--optim.lr 0.5", "run holds a run of another recipe: optim.lr was 0.003 and is 0.5; use another run_dir"),
        ("--run.seed 7", "run.seed was 0 and is 7; use another run_dir"),
        ("--model.hidden_size 64", "model.hidden_size was 32 and is 64; use another run_dir"),
        ("--policy.decoder frozen", "policy.decoder was train and is frozen; use another run_dir"),
        ("--run.max_steps 3", "run.max_steps is 3, but 4 steps of run are done; use another run_dir"),
        ("--run.max_steps 3 --optim.lr -1", "run.max_steps is 3, but 4 steps of run are done; use another run_dir"),
        ("--run_dir other --run.max_steps 3", "run.max_steps (3) must be a multiple of run.validate_every (4); give 4"),
        ("--run_dir other --optim.lr -1", "recipe text.yaml: optim.lr must be positive, got -1.0"),
        ("--run_dir other --run.watch.keep_best los", "run.watch.keep_best is los, which no validation gives"),
        ("--run_dir file", "run_dir is file, but file is a file; name a folder"),
        ("--run_dir file --dry-run", "run_dir is file, but file is a file; name a folder"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused_without_torch(folder, words, sentence):
    command = ["fit", "--config", "text.yaml", "--run_dir", "run", *words.split()]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert sentence in done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"status": 2, "slow": []}
    assert sorted(os.listdir(folder / "run")) == ["checkpoints", "config.yaml"]


def test_of_several_processes_of_a_machine_one_says_why(folder, monkeypatch, capsys):
    words = ["fit", "--config", str(folder / "text.yaml"), "--run_dir", str(folder / "run"), "--optim.lr", "0.5"]
    words += ["--run.engine.devices", "2"]
    for name, value in {"WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
        told.append((status, "optim.lr was 0.003 and is 0.5" in capsys.readouterr().err))
    assert told == [(2, True), (2, False)]
