"""Several processes train what one does: the same samples in each step, and the same losses within float order."""

import csv
import json
import signal
from pathlib import Path

import pytest

from arlow_vl.training.recipe import parse_recipe
from arlow_vl.training.run import fit
from tests.tiny_runs import write_text_recipe
from tests.training.rank_runs import run_on_ranks

LOSS = {"rel": 2e-5, "abs": 1e-6}
"""Sums over processes are sums in another order, in float32; a dozen steps of training let it grow."""


@pytest.fixture(scope="module")
def text_config(tmp_path_factory) -> str:
    return str(write_text_recipe(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def alone(text_config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    fit(parse_recipe(options(text_config, folder)))
    return folder


def options(config: str, folder: Path, devices: int = 1, *more: str) -> list[str]:
    return ["--config", config, "--run_dir", str(folder), "--run.engine.devices", str(devices), *more]


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def assert_same_run(folder: Path, alone: Path) -> None:
    ours, theirs = steps(folder), steps(alone)
    assert [(line["step"], line["keys"]) for line in ours] == [(line["step"], line["keys"]) for line in theirs]
    losses = [[float.fromhex(line["loss"]) for line in lines] for lines in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], **LOSS)
    for row, expected in zip(rows(folder), rows(alone), strict=True):
        assert row.keys() == expected.keys()
        for name in row:
            if "per_second" not in name and expected[name]:
                assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-5), name


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_two_processes_train_what_one_does_and_stop_together_when_one_is_told(text_config, alone, tmp_path):
    stopped = {"options": options(text_config, tmp_path / "run", 2), "stop": {"step": 5, "rank": 1, "number": 15}}
    goes_on = {"options": options(text_config, tmp_path / "run", 2)}
    assert run_on_ranks(2, tmp_path, stopped | {"status": 128 + signal.SIGTERM}, goes_on) == 0
    assert_same_run(tmp_path / "run", alone)
