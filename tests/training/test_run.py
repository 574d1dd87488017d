"""Killed and resumed equals never killed: every step's loss and samples, the metrics, the final weights."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from safetensors.torch import load_file

from arlow_vl.errors import CheckpointError, DivergenceError
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.training import run
from arlow_vl.training.checkpoint_io import read_checkpoint
from arlow_vl.training.checkpoint_names import checkpoints, steps_done
from arlow_vl.training.logs import SPEED_COLUMNS
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit, run_lock
from tests.tiny_runs import weights_sha256, write_image_text_recipe, write_text_recipe


class Cut(Exception):
    pass


class Interrupt(Callback):
    """Raises `Cut`, or sends a signal, when `hook` is reached with `step` steps done."""

    def __init__(self, hook: str, step: int, number: int | None = None):
        self.hook, self.step, self.number = hook, step, number

    def _at(self, hook: str, trainer) -> None:
        if (hook, trainer.global_step) != (self.hook, self.step):
            return
        self.hook = "done"
        if self.number is None:
            raise Cut
        os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, *_):
        self._at("batch starts", trainer)

    def on_train_batch_end(self, trainer, *_):
        self._at("batch ends", trainer)

    def on_validation_batch_start(self, trainer, *_, **__):
        self._at("validation", trainer)

    def on_validation_end(self, trainer, *_):
        self._at("validated", trainer)

    def on_train_end(self, trainer, *_):
        self._at("trained", trainer)


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, str]:
    writers = {"text": write_text_recipe, "image_text": write_image_text_recipe}
    return {stage: str(write(tmp_path_factory.mktemp(stage))) for stage, write in writers.items()}


@pytest.fixture(scope="module")
def text_config(configs) -> str:
    return configs["text"]


@pytest.fixture(scope="module")
def finished(configs, tmp_path_factory) -> dict[str, Path]:
    """The run folder of an uninterrupted run of each stage; to be left as it is."""
    folders = {stage: tmp_path_factory.mktemp(f"finished-{stage}") for stage in configs}
    for stage, folder in folders.items():
        assert start(configs[stage], folder) is None
    return folders


@pytest.fixture(scope="module")
def uninterrupted(finished) -> dict[str, dict]:
    return {stage: facts(folder) for stage, folder in finished.items()}


def start(config: str, run_dir: Path, *options: str, interrupt: Interrupt | None = None) -> int | None:
    """The exit status of a run that was stopped, None if it went to its end."""
    try:
        fit(
            parse_recipe(["--config", config, "--run_dir", str(run_dir), *options]),
            callbacks=[interrupt] if interrupt else [],
        )
    except Cut:
        return 1
    except SystemExit as stop:
        return stop.code
    return None


def facts(run_dir: Path) -> dict:
    with open(run_dir / "metrics.csv") as file:
        metrics = [{k: v for k, v in row.items() if k not in SPEED_COLUMNS} for row in csv.DictReader(file)]
    return {
        "steps": (run_dir / "steps.jsonl").read_text(),
        "metrics": metrics,
        "weights": weights_sha256(run_dir / "hf"),
    }


@pytest.mark.parametrize(
    ("stage", "hook", "step"),
    [
        ("text", "batch starts", 0),
        ("text", "batch ends", 3),  # its checkpoint is just written
        ("text", "batch starts", 5),
        ("text", "validation", 8),
        ("text", "batch ends", 12),  # the last step
        ("text", "validation", 12),
        ("text", "trained", 12),
        ("image_text", "batch ends", 1),
        ("image_text", "batch ends", 2),
        ("image_text", "validated", 3),
        ("image_text", "batch starts", 5),
        ("image_text", "batch ends", 6),
    ],
)
def test_a_cut_run_goes_on_as_if_it_had_never_been_cut(configs, tmp_path, uninterrupted, stage, hook, step):
    assert start(configs[stage], tmp_path, interrupt=Interrupt(hook, step)) == 1
    assert start(configs[stage], tmp_path) is None
    assert facts(tmp_path) == uninterrupted[stage]


def test_a_run_that_is_cut_three_times_is_the_same_run(text_config, tmp_path, uninterrupted):
    for step in (4, 5, 10):
        assert start(text_config, tmp_path, interrupt=Interrupt("batch ends", step)) == 1
    assert start(text_config, tmp_path) is None
    assert facts(tmp_path) == uninterrupted["text"]


@pytest.mark.parametrize(
    ("stage", "number", "hook", "step", "saved"),
    [
        ("text", signal.SIGTERM, "batch starts", 1, 2),
        ("text", signal.SIGTERM, "validation", 8, 8),
        ("text", signal.SIGTERM, "batch starts", 11, 12),
        ("image_text", signal.SIGINT, "batch starts", 2, 3),
        ("image_text", signal.SIGTERM, "validation", 6, 6),
        ("text", signal.SIGUSR1, "batch starts", 3, 4),
        ("text", signal.SIGHUP, "batch starts", 5, 6),
    ],
)
def test_a_signal_saves_the_step_and_the_run_goes_on(
    configs, tmp_path, uninterrupted, stage, number, hook, step, saved
):
    assert start(configs[stage], tmp_path, interrupt=Interrupt(hook, step, number)) == 128 + number
    assert checkpoints(tmp_path / "checkpoints")[0].name == f"step-{saved:06d}.ckpt"
    assert start(configs[stage], tmp_path) is None
    assert facts(tmp_path) == uninterrupted[stage]


def test_on_a_cluster_a_signal_is_taken_as_anywhere(text_config, tmp_path, uninterrupted, monkeypatch):
    """Lightning's handler for SLURM saves in the middle of a step, and other data come after it."""
    slurm = {"JOB_ID": "7", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "arlow"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert start(text_config, tmp_path, interrupt=Interrupt("batch starts", 4, signal.SIGUSR1)) == 128 + signal.SIGUSR1
    assert start(text_config, tmp_path) is None
    assert facts(tmp_path) == uninterrupted["text"]


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_one_of_several_processes_does_not_train_alone(text_config, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match=f"{name} is 2, but run.engine asks for 1 device on 1 node"):
        start(text_config, tmp_path)
    assert not (tmp_path / "steps.jsonl").exists()


def test_checkpoints_at_validation_steps_resume_the_same(text_config, tmp_path, uninterrupted):
    options = ("--run.checkpoint_every", "4")
    assert start(text_config, tmp_path, *options, interrupt=Interrupt("batch ends", 9)) == 1
    assert start(text_config, tmp_path, *options) is None
    assert facts(tmp_path) == uninterrupted["text"]


def test_a_damaged_newest_checkpoint_costs_steps_but_changes_nothing(text_config, tmp_path, uninterrupted, capsys):
    start(text_config, tmp_path, interrupt=Interrupt("batch ends", 8))
    newest = checkpoints(tmp_path / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert start(text_config, tmp_path) is None
    assert "step-000006.ckpt is damaged" in capsys.readouterr().err
    assert facts(tmp_path) == uninterrupted["text"]


def test_with_all_checkpoints_damaged_the_run_refuses_to_start_again(text_config, tmp_path):
    start(text_config, tmp_path, interrupt=Interrupt("batch ends", 8))
    for path in checkpoints(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="there is no other"):
        start(text_config, tmp_path)


def test_another_seed_is_another_run(text_config, tmp_path, uninterrupted):
    start(text_config, tmp_path, "--run.seed", "1")
    assert facts(tmp_path)["weights"] != uninterrupted["text"]["weights"]


def test_dropout_is_on_in_these_runs(text_config, tmp_path, uninterrupted):
    start(text_config, tmp_path, "--model.attention_dropout", "0.0")
    assert facts(tmp_path)["weights"] != uninterrupted["text"]["weights"]


def test_the_text_product_is_the_trained_model_with_its_tokenizer(finished):
    folder = finished["text"]
    model = ArlowForCausalLM.from_pretrained(folder / "hf")
    trained = read_checkpoint(checkpoints(folder / "checkpoints")[0])["state_dict"]
    assert all((tensor == model.state_dict()[name.removeprefix("model.")]).all() for name, tensor in trained.items())
    assert len(ArlowTokenizerFast.from_pretrained(folder / "hf")) == model.config.vocab_size


def test_the_image_text_product_captions_an_image_file(finished):
    product = finished["image_text"] / "hf"
    model, processor = ArlowVLForConditionalGeneration.from_pretrained(product), ArlowProcessor.from_pretrained(product)
    assert model.config.vision_config.transform == processor.image_processor.transform.to_dict()
    inputs = processor(text="<image>", images=Image.new("RGB", (40, 30), "red"), return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_a_vision_language_model_keeps_the_text_models_tensors(configs, finished):
    before = safe_tensors(Path(configs["image_text"]).parent / "text")
    after = safe_tensors(finished["image_text"] / "hf")
    kept = {name: f"model.language_model.{name.removeprefix('model.')}" for name in before if "cross_block" not in name}
    assert kept
    assert all(torch.equal(before[old], after[new]) for old, new in kept.items())
    assert after["model.language_model.layers.1.cross_block.attn_gate"] != 0


def safe_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("stage", "frozen"), [("text", "cross_block"), ("image_text", "vision")])
def test_frozen_tensors_are_in_the_product_but_not_in_checkpoints(finished, stage, frozen):
    assert any(frozen in name for name in safe_tensors(finished[stage] / "hf"))
    checkpoint = read_checkpoint(checkpoints(finished[stage] / "checkpoints")[0])
    assert not any(frozen in name for name in checkpoint["state_dict"])
    trained = [name for name in checkpoint["state_dict"] if name != "model.lm_head.weight"]  # it is the embedding
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(trained)


def test_the_loss_falls(finished):
    lines = (finished["text"] / "steps.jsonl").read_text().splitlines()
    losses = [float.fromhex(json.loads(line)["loss"]) for line in lines]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5


def validations(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["validation_loss"]]


def test_text_validation_is_logged_in_bits_per_byte_too(finished):
    rows = validations(finished["text"])
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    assert all(0 < float(row["validation_bits_per_byte"]) < 8 for row in rows)


def test_each_validation_source_has_a_column_of_its_own(finished):
    (_, row) = validations(finished["image_text"])
    assert len({row[f"validation_loss{part}"] for part in ("", "_captions", "_questions")}) == 3


def test_a_finished_run_returns_at_once(text_config, finished, capsys):
    written = (finished["text"] / "steps.jsonl").stat().st_mtime_ns
    assert start(text_config, finished["text"]) is None
    assert "is finished" in capsys.readouterr().out
    assert (finished["text"] / "steps.jsonl").stat().st_mtime_ns == written


def test_the_written_config_runs_the_same_run_again(finished, tmp_path, uninterrupted):
    assert start(str(finished["text"] / "config.yaml"), tmp_path) is None
    assert facts(tmp_path) == uninterrupted["text"]


def test_another_recipe_in_the_folder_is_refused_with_its_first_differing_key(text_config, finished):
    with pytest.raises(ValueError, match=r"holds a run of another recipe: optim.lr was 0.003 and is 0.5"):
        start(text_config, finished["text"], "--optim.lr", "0.5")


def test_a_folder_without_results_takes_another_recipe(text_config, tmp_path):
    start(text_config, tmp_path, interrupt=Interrupt("batch ends", 1))
    assert start(text_config, tmp_path, "--optim.lr", "0.001") is None


def test_a_second_run_in_the_folder_is_refused_by_the_first_ones_process(text_config, tmp_path):
    with run_lock(tmp_path), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        start(text_config, tmp_path)


def test_the_lock_of_a_dead_process_does_not_hold(text_config, tmp_path):
    (tmp_path / "run.lock").write_text("1\n")
    assert start(text_config, tmp_path) is None


class Poison(Callback):
    """Makes a weight infinite in front of step 5, or the gradient in some steps, counted from 1."""

    def __init__(self, *, weight: bool = False, gradient: tuple[int, ...] = ()):
        self.weight, self.gradient = weight, gradient

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == 4 and self.weight:
            module.model.model.norm.weight.data[0] = float("nan")

    def on_after_backward(self, trainer, module):
        if trainer.global_step + 1 in self.gradient:
            module.model.model.norm.weight.grad[0] = float("inf")


def test_three_steps_in_a_row_that_are_not_finite_end_the_run_before_anything_is_saved(text_config, tmp_path):
    recipe = parse_recipe(["--config", text_config, "--run_dir", str(tmp_path), "--run.checkpoint_every", "4"])
    sentence = r"loss is nan at step 7, not finite for 3 steps in a row, samples train:0.*checkpoint: .*step-000004"
    with pytest.raises(DivergenceError, match=sentence):
        fit(recipe, callbacks=[Poison(weight=True)])
    for path in checkpoints(tmp_path / "checkpoints"):
        assert all(tensor.isfinite().all() for tensor in read_checkpoint(path)["state_dict"].values())


def test_a_weight_that_is_not_finite_is_not_saved(text_config, tmp_path):
    recipe = parse_recipe(["--config", text_config, "--run_dir", str(tmp_path), "--run.checkpoint_every", "1"])
    with pytest.raises(DivergenceError, match=r"norm.weight is not finite after step 5; .*step-000004"):
        fit(recipe, callbacks=[Poison(weight=True)])


def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_the_run_goes_on(text_config, tmp_path, capsys):
    recipe = parse_recipe(["--config", text_config, "--run_dir", str(tmp_path)])
    fit(recipe, callbacks=[Poison(gradient=(5, 6, 8))])
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("left_out") == "non-finite"] == [5, 6, 8]
    assert "steps that were left out: 3 non-finite" in capsys.readouterr().err


def test_bad_steps_are_counted_over_a_stop(text_config, tmp_path):
    recipe = parse_recipe(["--config", text_config, "--run_dir", str(tmp_path), "--run.checkpoint_every", "1"])
    with pytest.raises(Cut):
        fit(recipe, callbacks=[Poison(gradient=(5, 6)), Interrupt("batch ends", 6)])
    with pytest.raises(DivergenceError, match="step 7, not finite for 3 steps in a row"):
        fit(recipe, callbacks=[Poison(gradient=(7,))])


def test_a_step_of_skip_steps_is_passed_by(text_config, tmp_path, uninterrupted):
    assert start(text_config, tmp_path, interrupt=Interrupt("batch ends", 4)) == 1
    assert start(text_config, tmp_path, "--run.skip_steps", "[6]", interrupt=Interrupt("batch ends", 7)) == 1
    assert start(text_config, tmp_path, "--run.skip_steps", "[6]") is None
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("left_out") == "skipped"] == [6]
    before = [json.loads(line) for line in uninterrupted["text"]["steps"].splitlines()]
    assert [line["keys"] for line in lines] == [line["keys"] for line in before]  # the data go on as they would have
    assert lines[:5] == before[:5]
    assert lines[7]["loss"] != before[7]["loss"]
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [row["step"] for row in uninterrupted["text"]["metrics"]]
    assert [row["step"] for row in rows if not any(list(row.values())[1:])] == ["6"]


def test_a_run_is_made_longer_where_its_rates_allow(text_config, tmp_path):
    constant = ("--optim.schedule", "constant")
    assert start(text_config, tmp_path / "long", *constant, "--run.max_steps", "16") is None
    assert start(text_config, tmp_path / "made-longer", *constant) is None
    assert start(text_config, tmp_path / "made-longer", *constant, "--run.max_steps", "16") is None
    assert facts(tmp_path / "made-longer") == facts(tmp_path / "long")


def test_a_run_that_is_made_longer_where_its_decay_would_begin_takes_no_step_of_it(text_config, tmp_path):
    """Eight steps are done, and the rate of the ninth was in the checkpoint."""
    wsd = ("--optim.schedule", "wsd", "--optim.decay_steps", "4")
    longer = (*wsd, "--run.max_steps", "16")
    assert start(text_config, tmp_path / "long", *longer) is None
    stopped = Interrupt("batch starts", 7, signal.SIGTERM)
    assert start(text_config, tmp_path / "made-longer", *wsd, interrupt=stopped) == 128 + signal.SIGTERM
    assert start(text_config, tmp_path / "made-longer", *longer) is None
    assert facts(tmp_path / "made-longer") == facts(tmp_path / "long")


def test_a_run_whose_rates_would_have_been_others_is_not_made_longer(text_config, finished):
    with pytest.raises(ValueError, match=r"max_steps was 12 and is 16, but with optim.schedule cosine step 4 would"):
        start(text_config, finished["text"], "--run.max_steps", "16")


@pytest.mark.parametrize(
    "options",
    [
        ("--optim.ema", "0.9"),
        ("--optim.optimizer", "muon"),
        ("--optim.max_spike", "1.01"),
        ("--run.accumulate_grad_batches", "2", "--optim.schedule", "wsd"),
        ("--policy", '{"decoder": {"treatment": "lora", "rank": 2}, "cross_attention": "frozen"}'),
        ("--policy", '{"decoder": {"treatment": "train", "blocks": [1, 2], "lr": 0.01}, "cross_attention": "frozen"}'),
        ("--run.watch.log_every", "5"),
        ("--run.gradient_checkpointing", "true"),
        ("--run.precision", "bf16-true", "--optim.ema", "0.9"),
    ],
)
def test_whatever_is_trained_and_how_a_cut_run_is_the_same_run(text_config, tmp_path, options):
    assert start(text_config, tmp_path / "whole", *options) is None
    cut = tmp_path / "cut"
    assert start(text_config, cut, *options, interrupt=Interrupt("batch ends", 5)) == 1
    stopped = start(text_config, cut, *options, interrupt=Interrupt("validation", 8, signal.SIGTERM))
    assert stopped == 128 + signal.SIGTERM
    assert start(text_config, cut, *options) is None
    assert facts(cut) == facts(tmp_path / "whole")


def test_a_run_ends_at_its_hours_with_a_checkpoint_and_goes_on(text_config, tmp_path, uninterrupted, capsys):
    assert start(text_config, tmp_path, "--run.max_hours", "1e-9") == 75
    assert "stopped by run.max_hours (1e-09) after step 1" in capsys.readouterr().err
    assert start(text_config, tmp_path) is None
    assert facts(tmp_path) == uninterrupted["text"]


def test_the_hours_of_a_run_hold_its_preparation_too(text_config, tmp_path, monkeypatch):
    def build(recipe):
        time.sleep(2)
        return run.build_stage(recipe)

    monkeypatch.setattr(run, "build", build)
    assert start(text_config, tmp_path, "--run.max_hours", str(2 / 3600), "--run.checkpoint_every", "1000") == 75
    assert steps_done(tmp_path) == 1


def test_a_frozen_tensor_that_changes_ends_the_run_without_a_product(text_config, tmp_path):
    class Thaw(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.model.model.layers[1].cross_block.attn_gate.data += 1e-6

    recipe = parse_recipe(["--config", text_config, "--run_dir", str(tmp_path)])
    with pytest.raises(
        ValueError, match=r"layers.1.cross_block.attn_gate is frozen in this stage but its bytes changed"
    ):
        fit(recipe, callbacks=[Thaw()])
    assert not (tmp_path / "hf").exists()


SLOW_FIT = """
import sys, time
from lightning.pytorch import Callback
from arlow_vl.training.logs import SPEED_COLUMNS
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit

class Slow(Callback):
    def on_train_batch_end(self, *_):
        time.sleep(0.2)

fit(parse_recipe(["--config", sys.argv[1], "--run_dir", sys.argv[2]]), callbacks=[Slow()])
"""


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(text_config, tmp_path, uninterrupted):
    with subprocess.Popen([sys.executable, "-c", SLOW_FIT, text_config, str(tmp_path)]) as process:
        while process.poll() is None and not (tmp_path / "checkpoints" / "step-000006.ckpt").exists():
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "hf").exists()
    assert start(text_config, tmp_path) is None
    assert facts(tmp_path) == uninterrupted["text"]
