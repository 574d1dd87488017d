"""What a GPU is trusted with: runs in every precision, resumes, an evaluation and a server, beside those of a CPU."""

import json
from pathlib import Path

import pytest
import torch

from arlow_vl.cli import main
from arlow_vl.serving.assistant import Assistant
from tests.serving.live import live
from tests.serving.tiny_folders import write_folders
from tests.tiny_runs import SAMPLES, TINY_MODEL, write_image_text_recipe, write_text_recipe
from tests.training.test_run import Interrupt, start

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
PRECISIONS = {"32-true": 2e-3, "bf16-mixed": 0.05, "bf16-true": 0.1, "16-mixed": 0.02}
"""The most by which a step's loss may differ from float32's on a CPU, in nats: six steps away from equal weights."""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[str, str]:
    """Without dropout, whose draws are the device's own."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "text").mkdir(), (folder / "image_text").mkdir()
    steady = {"attention_dropout": 0.0}
    text = write_text_recipe(folder / "text", model=TINY_MODEL | steady)
    vision = write_image_text_recipe(folder / "image_text", text_model=steady, cache_features=None)
    return {"text": str(text), "image_text": str(vision)}


@pytest.fixture(scope="module")
def on_cpu(recipes, tmp_path_factory) -> dict[str, list[dict]]:
    folders = {stage: tmp_path_factory.mktemp(f"cpu-{stage}") for stage in recipes}
    for stage, folder in folders.items():
        assert start(recipes[stage], folder, "--run.engine.accelerator", "cpu") is None
    return {stage: steps_of(folder) for stage, folder in folders.items()}


def steps_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "steps.jsonl").read_text().splitlines()]


def on_device(*options: str) -> tuple[str, ...]:
    return ("--run.engine.accelerator", DEVICE, *options)


def assert_alike(steps: list[dict], others: list[dict], off: float) -> None:
    """The same samples in the same steps, and losses that are nearly the same."""
    assert [step["keys"] for step in steps] == [step["keys"] for step in others]
    for ours, theirs in zip(steps, others, strict=True):
        assert float.fromhex(ours["loss"]) == pytest.approx(float.fromhex(theirs["loss"]), abs=off), ours["step"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_every_precision_has_the_losses_of_a_cpu(recipes, on_cpu, tmp_path, stage, precision):
    assert start(recipes[stage], tmp_path, *on_device("--run.precision", precision)) is None
    assert_alike(steps_of(tmp_path), on_cpu[stage], PRECISIONS[precision])
    assert (tmp_path / "hf" / "model.safetensors").is_file()


@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_parts_of_one_device_train_alike(recipes, on_cpu, tmp_path, stage):
    sharded = on_device("--run.engine.strategy", "fsdp", "--run.precision", "bf16-mixed", "--run.watch.show_samples", "0")
    assert start(recipes[stage], tmp_path, *sharded) is None
    assert_alike(steps_of(tmp_path), on_cpu[stage], PRECISIONS["bf16-mixed"])


@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_a_run_that_was_cut_goes_on_with_the_same_samples(recipes, on_cpu, tmp_path, stage):
    options = on_device("--run.workers", "1")
    assert start(recipes[stage], tmp_path, *options, interrupt=Interrupt("batch ends", 5)) == 1
    assert start(recipes[stage], tmp_path, *options) is None
    assert_alike(steps_of(tmp_path), on_cpu[stage], PRECISIONS["32-true"])


def test_looks_and_cached_features_work_there(recipes, tmp_path):
    options = ("--cache_features", str(tmp_path / "features"), "--run.watch.show_samples", "1")
    assert start(recipes["image_text"], tmp_path / "run", *on_device(*options)) is None
    assert len((tmp_path / "run" / "looks.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_model_there_answers_commands_and_requests(tmp_path, capsys, precision):
    _, model = write_folders(tmp_path)
    fox = str(SAMPLES / "fox.jpg")
    chosen = ["--model", str(model), "--device", DEVICE, "--precision", precision, "--max-new-tokens", "4"]
    assert main(["caption", fox, *chosen]) == 0
    assert main(["vqa", fox, "what is it?", *chosen]) == 0
    assert main(["generate", "the cat", *chosen]) == 0
    assert capsys.readouterr().out
    with live(Assistant.open(model, device=DEVICE, precision=precision)) as server:
        status, answer = server.chat(max_tokens=4)
    assert status == 200 and answer["choices"][0]["finish_reason"] in ("stop", "length")


def test_an_evaluation_there_is_scored_beside_its_controls(tmp_path, capsys):
    _, model = write_folders(tmp_path)
    told = ["--model", str(model), "--data", str(SAMPLES), "--task", "easy-vqa", "--limit", "6", "--device", DEVICE]
    assert main(["evaluate", *told, "--precision", "bfloat16", "--output", str(tmp_path / "results")]) == 0
    assert "shown another image" in capsys.readouterr().out
