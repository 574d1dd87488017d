"""Runs in every precision and in parts, on a CPU and on a GPU; and what else a GPU is trusted with."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file, save_file
from torch.amp import GradScaler

from arlow_vl.cli import main
from arlow_vl.errors import DivergenceError
from arlow_vl.serving.assistant import Assistant
from arlow_vl.training.dry_run import dry_run
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.steps import MOST_BAD_IN_A_ROW
from tests.serving.live import live
from tests.serving.tiny_folders import write_folders
from tests.tiny_runs import SAMPLES, TINY_MODEL, write_image_text_recipe, write_text_recipe
from tests.training.test_run import Interrupt, start

GPU = "cuda"
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param(GPU, marks=pytest.mark.gpu)])
PRECISIONS = {"32-true": 2e-3, "bf16-mixed": 0.05, "bf16-true": 0.1, "16-mixed": 0.02}
"""The most by which a loss may differ from float32's on a CPU, in nats, up to twelve steps from equal weights."""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[str, str]:
    """Without dropout, whose draws are the device's own, and of weights that bf16 holds, so that none is rounded."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "text").mkdir(), (folder / "image_text").mkdir()
    steady = {"attention_dropout": 0.0}
    text = write_text_recipe(folder / "text", model=TINY_MODEL | steady)
    vision = write_image_text_recipe(folder / "image_text", text_model=steady, cache_features=None)
    for path in (folder / "image_text/text/model.safetensors", folder / "image_text/encoder.safetensors"):
        held = {name: x.bfloat16().to(x.dtype) if x.is_floating_point() else x for name, x in load_file(path).items()}
        save_file(held, path, metadata={"format": "pt"})
    return {"text": str(text), "image_text": str(vision)}


@pytest.fixture(scope="module")
def runs_on_cpu(recipes, tmp_path_factory) -> dict[str, Path]:
    folders = {stage: tmp_path_factory.mktemp(f"cpu-{stage}") for stage in recipes}
    for stage, folder in folders.items():
        assert start(recipes[stage], folder, "--run.engine.accelerator", "cpu") is None
    return folders


@pytest.fixture(scope="module")
def on_cpu(runs_on_cpu) -> dict[str, list[dict]]:
    return {stage: steps_of(folder) for stage, folder in runs_on_cpu.items()}


def steps_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "steps.jsonl").read_text().splitlines()]


def norms_of(run_dir: Path) -> list[float]:
    with open(run_dir / "metrics.csv") as file:
        return [float(row["grad_norm"]) for row in csv.DictReader(file) if row["grad_norm"]]


def assert_alike(steps: list[dict], others: list[dict], off: float) -> None:
    """The same samples in the same steps, and losses that are nearly the same."""
    assert [step["keys"] for step in steps] == [step["keys"] for step in others]
    for ours, theirs in zip(steps, others, strict=True):
        assert float.fromhex(ours["loss"]) == pytest.approx(float.fromhex(theirs["loss"]), abs=off), ours["step"]


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bf16-mixed"), ("cpu", "bf16-true"), *(pytest.param(GPU, x, marks=pytest.mark.gpu) for x in PRECISIONS)],
)
@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_every_precision_has_the_losses_of_float32(recipes, on_cpu, tmp_path, stage, precision, device):
    options = ("--run.engine.accelerator", device, "--run.precision", precision)
    assert start(recipes[stage], tmp_path, *options) is None
    assert_alike(steps_of(tmp_path), on_cpu[stage], PRECISIONS[precision])
    assert (tmp_path / "hf" / "model.safetensors").is_file()


@pytest.mark.parametrize("frozen", ["vision", "decoder"])
def test_bf16_weights_do_not_round_what_is_frozen(tmp_path, frozen):
    parts = dict.fromkeys(("vision", "projector", "cross_attention", "decoder"), "train")
    config = str(write_image_text_recipe(tmp_path, cache_features=None, policy=parts | {frozen: "frozen"}))
    with pytest.raises(
        ValueError, match=rf"would round model.*, which policy.{frozen} keeps as it is; set it to bf16-m"
    ):
        start(config, tmp_path / "run", "--run.precision", "bf16-true")
    assert not (tmp_path / "run" / "steps.jsonl").exists()


def test_what_is_frozen_is_the_same_in_bf16_and_float32(recipes, tmp_path):
    assert start(recipes["image_text"], tmp_path, "--run.precision", "bf16-true") is None
    product = load_file(tmp_path / "hf" / "model.safetensors")
    text = load_file(Path(recipes["image_text"]).parent / "text" / "model.safetensors")
    for name in (name for name in text if "cross_block" not in name):
        now = product[name.replace("model.", "model.language_model.", 1)]
        assert now.dtype == torch.bfloat16 and now.float().equal(text[name]), name


def test_a_dry_run_counts_the_bytes_that_bf16_weights_take(recipes):
    def memory(*options: str) -> dict[str, float]:
        wide = ("--model.hidden_size", "512", "--optim.ema", "0.9", *options)
        (told,) = (x for x in dry_run(parse_recipe(["--config", recipes["text"], *wide])) if x.startswith("memory: "))
        return {name: float(size) for name, size in re.findall(r"([a-z ]+) ([\d.]+)[,)]", told)}

    whole, half = memory(), memory("--run.precision", "bf16-true")
    shares = {name: half[name] / whole[name] for name in whole}
    expected = {"weights": 0.5, "gradients": 0.5, "optimizer": 0.5, "moving average": 1.0}  # which is in float32 always
    assert {name.strip(): share for name, share in shares.items()} == pytest.approx(expected, abs=0.05)


class Float16(Callback):
    """What 16-mixed is on a GPU, on a CPU, where Lightning takes bf16-mixed for it."""

    def __init__(self, scale: float) -> None:
        self.plugin = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=scale))

    def setup(self, trainer, pl_module, stage) -> None:
        trainer.strategy.precision_plugin = self.plugin


@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_gradients_are_those_of_the_loss_whatever_it_was_scaled_by(recipes, runs_on_cpu, on_cpu, tmp_path, stage):
    assert start(recipes[stage], tmp_path, interrupt=Float16(2.0**10)) is None
    assert_alike(steps_of(tmp_path), on_cpu[stage], PRECISIONS["16-mixed"])
    # Eleven bits of each product, and weights that go apart by as much.
    assert norms_of(tmp_path) == pytest.approx(norms_of(runs_on_cpu[stage]), rel=0.05)


def test_a_scale_that_is_too_large_at_first_does_not_end_the_run(recipes, tmp_path):
    assert start(recipes["text"], tmp_path, interrupt=Float16(2.0**28)) is None
    left_out = [step.get("left_out") for step in steps_of(tmp_path)]
    assert left_out[:MOST_BAD_IN_A_ROW] == ["overflow"] * MOST_BAD_IN_A_ROW
    assert left_out[-1] is None


class Spoilt(Float16):
    def on_after_backward(self, trainer, pl_module) -> None:
        pl_module.model.model.norm.weight.grad[0] = float("nan")


def test_gradients_that_no_scale_makes_finite_end_the_run(recipes, tmp_path):
    with pytest.raises(DivergenceError, match=r"gradient norm is nan at step 5, not finite for 3 steps in a row"):
        start(recipes["text"], tmp_path, interrupt=Spoilt(4.0))
    assert [step["left_out"] for step in steps_of(tmp_path)] == ["overflow"] * 2 + ["non-finite"] * 3


@DEVICES
@pytest.mark.parametrize("stage", ["text", "image_text"])  # the encoder of images has batch norms
def test_parts_of_one_device_train_alike(recipes, on_cpu, tmp_path, stage, device):
    sharded = ("--run.engine.strategy", "fsdp", "--run.precision", "bf16-mixed")
    assert start(recipes[stage], tmp_path, "--run.engine.accelerator", device, *sharded) is None
    assert_alike(steps_of(tmp_path), on_cpu[stage], PRECISIONS["bf16-mixed"])
    assert not torch.distributed.is_initialized()  # whoever runs next in this process begins anew


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_a_run_that_was_cut_goes_on_with_the_same_samples(recipes, on_cpu, tmp_path, stage):
    options = ("--run.engine.accelerator", GPU, "--run.workers", "1")
    assert start(recipes[stage], tmp_path, *options, interrupt=Interrupt("batch ends", 5)) == 1
    assert start(recipes[stage], tmp_path, *options) is None
    assert_alike(steps_of(tmp_path), on_cpu[stage], PRECISIONS["32-true"])


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_compiled_blocks_train_alike_there(recipes, on_cpu, tmp_path, stage):
    options = ("--run.engine.accelerator", GPU, "--run.precision", "bf16-mixed", "--run.compile", "true")
    assert start(recipes[stage], tmp_path, *options) is None
    assert_alike(steps_of(tmp_path), on_cpu[stage], PRECISIONS["bf16-mixed"])


@pytest.mark.gpu
def test_looks_and_cached_features_work_there(recipes, tmp_path):
    options = ("--cache_features", str(tmp_path / "features"), "--run.watch.show_samples", "1")
    assert start(recipes["image_text"], tmp_path / "run", "--run.engine.accelerator", GPU, *options) is None
    assert len((tmp_path / "run" / "looks.jsonl").read_text().splitlines()) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_model_there_answers_commands_and_requests(tmp_path, capsys, precision):
    _, model = write_folders(tmp_path)
    fox = str(SAMPLES / "fox.jpg")
    chosen = ["--model", str(model), "--device", GPU, "--precision", precision, "--max-new-tokens", "4"]
    assert main(["caption", fox, *chosen]) == 0
    assert main(["vqa", fox, "what is it?", *chosen]) == 0
    assert main(["generate", "the cat", *chosen]) == 0
    assert capsys.readouterr().out
    with live(Assistant.open(model, device=GPU, precision=precision)) as server:
        status, answer = server.chat(max_tokens=4)
    assert status == 200 and answer["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.gpu
def test_an_evaluation_there_is_scored_beside_its_controls(tmp_path, capsys):
    _, model = write_folders(tmp_path)
    told = ["--model", str(model), "--data", str(SAMPLES), "--task", "easy-vqa", "--limit", "6", "--device", GPU]
    assert main(["evaluate", *told, "--precision", "bfloat16", "--output", str(tmp_path / "results")]) == 0
    assert "shown another image" in capsys.readouterr().out
