"""Several processes train what one does: the same samples in each step, and the same losses within float order."""

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arlow_vl.cli import main
from arlow_vl.training.build import build_stage
from arlow_vl.training.checkpoint_io import read_checkpoint
from arlow_vl.training.checkpoint_names import checkpoints
from arlow_vl.training.logs import SPEED_COLUMNS
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import build, fit
from tests.forked import by_fork
from tests.outside_data import samples, tar_of
from tests.tiny_runs import weights_sha256, write_image_text_recipe, write_text_recipe
from tests.training.rank_recipes import HEADS, write_shared_image_text, write_shared_text
from tests.training.rank_runs import run_on_ranks
from tests.training.stops import Stop

MEMBERS = samples(*(f"{number:02d}" for number in range(20)))
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
            if name not in SPEED_COLUMNS and expected[name]:
                assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-5), name
        if row["train_loss"]:
            assert operations_per_token(row) == pytest.approx(operations_per_token(expected), rel=1e-2)


def operations_per_token(row: dict[str, str]) -> float:
    return float(row["tflop_per_second"]) / float(row["tokens_per_second"])


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_two_processes_train_what_one_does_and_stop_together_when_one_is_told(
    text_config, alone, tmp_path, monkeypatch
):
    monkeypatch.setattr("arlow_vl.training.launch.subprocess", by_fork)
    stopped = {"options": options(text_config, tmp_path / "run", 2), "stop": {"step": 5, "rank": 1, "number": 15}}
    goes_on = {"options": options(text_config, tmp_path / "run", 2)}
    assert run_on_ranks(2, tmp_path, stopped | {"status": 128 + signal.SIGTERM}, goes_on) == 0
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("threads", "variables", "preparing", "training"),
    [("null", {}, 6, 2), ("4", {}, 4, 4), ("null", {"OMP_NUM_THREADS": "6"}, 6, 6)],
)
def test_processes_on_one_cpu_share_its_threads_once_the_first_has_prepared(
    threads, variables, preparing, training, text_config, tmp_path, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    prepared = []

    def preparing_stage(recipe):
        prepared.append(torch.get_num_threads())
        return build_stage(recipe)

    monkeypatch.setattr("arlow_vl.training.run.build_stage", preparing_stage)
    own = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        build(parse_recipe(options(text_config, tmp_path, 3, "--run.threads", threads)))
        assert (prepared, torch.get_num_threads()) == ([preparing], training)
    finally:
        torch.set_num_threads(own)


FSDP = ("--run.engine.strategy", "fsdp")
TENSOR = (*FSDP, "--run.engine.tensor_parallel", "2")
WAYS = {
    "ddp": (),
    "fsdp": FSDP,
    "tensor": TENSOR,
    "replicas": (*FSDP, "--run.engine.replicas", "2"),
}


@pytest.fixture(scope="module", params=["text", "image_text"])
def shared(request, tmp_path_factory) -> tuple[str, Path]:
    """A recipe, and its run in one process."""
    folder = tmp_path_factory.mktemp(f"shared-{request.param}")
    config = {"text": write_shared_text, "image_text": write_shared_image_text}[request.param](folder)
    fit(parse_recipe(options(config, folder / "alone")))
    return config, folder / "alone"


def frozen_hashes(folder: Path) -> dict[str, str]:
    return read_checkpoint(checkpoints(folder / "checkpoints")[0])["callbacks"]["FrozenTensorsCheck"]


@pytest.mark.slow
def test_every_way_to_share_a_run_between_two_processes_is_the_run_of_one(shared, tmp_path):
    config, alone = shared
    runs = [{"options": options(config, tmp_path / name, 2, *way)} for name, way in WAYS.items()]
    assert run_on_ranks(2, tmp_path, *runs) == 0
    for name in WAYS:
        assert_same_run(tmp_path / name, alone)
        assert frozen_hashes(tmp_path / name) == frozen_hashes(alone)
        ours, theirs = (load_file(folder / "hf/model.safetensors") for folder in (tmp_path / name, alone))
        assert ours.keys() == theirs.keys()
        for tensor in ours:  # AdamW divides by tiny second moments, which float order moves
            torch.testing.assert_close(ours[tensor], theirs[tensor], rtol=1e-2, atol=1e-3, msg=f"{name}: {tensor}")


@pytest.mark.slow
def test_a_run_goes_from_one_process_to_two_to_four_and_back_to_one(tmp_path_factory, tmp_path):
    config = write_shared_text(tmp_path_factory.mktemp("moving"))
    fit(parse_recipe(options(config, tmp_path / "alone")))
    run, stopped = tmp_path / "run", 128 + signal.SIGTERM
    with pytest.raises(SystemExit):
        fit(parse_recipe(options(config, run)), callbacks=[Stop(step=2, number=15)])
    two = {"options": options(config, run, 2, *FSDP), "stop": {"step": 5, "rank": 0, "number": 15}, "status": stopped}
    assert run_on_ranks(2, tmp_path, two) == 0
    assert checkpoints(run / "checkpoints")[0].is_dir()
    four = {
        "options": options(config, run, 4, *TENSOR),
        "stop": {"step": 9, "rank": 3, "number": 15},
        "status": stopped,
    }
    assert run_on_ranks(4, tmp_path, four) == 0
    fit(parse_recipe(options(config, run)))
    assert_same_run(run, tmp_path / "alone")


@pytest.mark.slow
def test_when_a_process_fails_or_is_killed_the_run_ends_with_its_reason(text_config, tmp_path, capfd):
    failing = {"options": options(text_config, tmp_path / "failing", 2), "stop": {"step": 3, "rank": 1}}
    assert run_on_ranks(2, tmp_path, failing) == 2
    assert "arlow: rank 1: the data of this rank are gone" in capfd.readouterr().err
    killed = {
        "options": options(text_config, tmp_path / "killed", 2, *FSDP),
        "stop": {"step": 3, "rank": 1, "number": 9},
    }
    assert run_on_ranks(2, tmp_path, killed) == 128 + signal.SIGKILL
    assert "the process of rank 1 died (SIGKILL), so the run ends" in capfd.readouterr().err


@pytest.mark.slow
def test_the_bad_samples_of_all_processes_are_told_and_limited_together(tmp_path, capfd):
    bad = [(name, data[:300] if name in ("02.jpg", "07.jpg", "11.jpg", "16.jpg") else data) for name, data in MEMBERS]
    (tmp_path / "some.tar").write_bytes(tar_of(*bad))
    source = {"name": "some", "data": str(tmp_path / "some.tar"), "kind": "captions", "samples_per_batch": 1}
    config = str(write_image_text_recipe(tmp_path, text_model=HEADS, sources=[source], cache_features=None))
    more = ("--run.accumulate_grad_batches", "2", "--run.max_steps", "20", "--run.validate_every", "20")
    told = "4 samples skipped (truncated 4)"
    for fraction, folder, status in (("0.2", "enough", 0), ("0.15", "few", 2)):
        run = options(config, tmp_path / folder, 2, *more, "--max_bad_fraction", fraction)
        assert (run_on_ranks(2, tmp_path, {"options": run}) == 0) == (status == 0)
        assert (f"source some: {told}" + (", the limit is 3" if status else "\n")) in capfd.readouterr().err


SAVE = "step-000009.ckpt"
IN_A_SAVE = {
    "ddp": [("open", f".{SAVE}."), ("os.rename", f".{SAVE}."), ("os.remove", "step-000003.ckpt")],
    "fsdp": [
        ("os.mkdir", f".partial-{SAVE}"),
        ("open", f".partial-{SAVE}/run.ckpt"),
        ("open", f".partial-{SAVE}/manifest.json"),
        ("os.rename", f".partial-{SAVE}"),
        ("os.rename", "step-000003.ckpt"),
        ("os.rmdir", ".partial-step-000003.ckpt"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("way", IN_A_SAVE)
def test_wherever_the_writing_process_dies_in_a_save_the_run_goes_on_as_if_it_had_not(
    text_config, tmp_path, monkeypatch, capfd, way
):
    monkeypatch.setattr("arlow_vl.training.launch.subprocess", by_fork)
    whole = tmp_path / "whole"
    assert run_on_ranks(2, tmp_path, {"options": options(text_config, whole, 2, *WAYS[way])}) == 0
    for number, (event, words) in enumerate(IN_A_SAVE[way]):
        run = {"options": options(text_config, tmp_path / str(number), 2, *WAYS[way])}
        assert run_on_ranks(2, tmp_path, run | {"kill": {"event": event, "words": words}}) == 128 + signal.SIGKILL
        assert "the process of rank 0 died (SIGKILL), so the run ends" in capfd.readouterr().err
        assert run_on_ranks(2, tmp_path, run) == 0
        assert steps(tmp_path / str(number)) == steps(whole), (event, words)
        assert weights_sha256(tmp_path / str(number) / "hf") == weights_sha256(whole / "hf"), (event, words)
        left = sorted(path.name for path in (tmp_path / str(number) / "checkpoints").iterdir())
        assert left == [SAVE, "step-000012.ckpt"], (event, words)


@pytest.mark.slow
def test_arlow_fit_starts_the_processes_itself_and_a_refusal_is_printed_once(text_config, alone, tmp_path, capfd):
    run = tmp_path / "run"
    assert main(["fit", *options(text_config, run, 2, "--run.accumulate_grad_batches", "3")]) == 2
    assert capfd.readouterr().err.count("which 2 data ranks cannot share evenly; set it to 4") == 1
    assert main(["fit", *options(text_config, run, 2, *FSDP)]) == 0
    assert capfd.readouterr().out.count(f"trained model: {run / 'hf'}") == 1
    assert_same_run(run, alone)
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert main(["checkpoint", "export", str(run), "--out", str(tmp_path / "model")]) == 0
    assert weights_sha256(tmp_path / "model") == weights_sha256(run / "hf")
