"""The best model is kept, and a run that gets no better ends; both as if it had never been cut."""

import json
import shutil

import pytest
from lightning.pytorch import Callback

from arlow_vl.data.trained_prompts import read_trained_prompts
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.folder_writing import find_changes
from arlow_vl.training.best import replace_folder
from arlow_vl.training.checkpoint_file import write_checkpoint
from arlow_vl.training.checkpoint_io import read_checkpoint
from arlow_vl.training.checkpoint_names import checkpoints, steps_done
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.tiny_runs import weights_sha256, write_image_text_recipe, write_text_recipe
from tests.training.test_run import Cut, Interrupt, facts, validations

KEEP = ("--run.watch.keep_best", "validation_loss")
RISING = ("--optim.lr", "2.0", "--optim.warmup_steps", "0", "--optim.schedule", "constant", "--run.validate_every", "2")
"""A rate at which the loss soon rises."""
RARE = ("--run.checkpoint_every", "1000")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    return str(write_text_recipe(tmp_path_factory.mktemp("text")))


def run(config, run_dir, *options, callbacks=()):
    fit(parse_recipe(["--config", config, "--run_dir", str(run_dir), *options]), callbacks=list(callbacks))


def best_of(run_dir) -> dict:
    return json.loads((run_dir / "best" / "best.json").read_text())


def steps_of(run_dir) -> int:
    return len((run_dir / "steps.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def rising(config, tmp_path_factory):
    """A finished run whose loss rises, and its validations."""
    folder = tmp_path_factory.mktemp("rising")
    run(config, folder, *KEEP, *RISING)
    return folder, {int(row["step"]): float(row["validation_loss"]) for row in validations(folder)}


def test_the_folder_holds_the_model_of_the_smallest_value(config, rising, tmp_path):
    folder, losses = rising
    best = best_of(folder)
    assert best["step"] == min(losses, key=losses.get) < 12
    assert best["value"] == pytest.approx(losses[best["step"]], rel=1e-5)  # metrics.csv has six digits
    assert find_changes(folder / "best") == []
    ArlowForCausalLM.from_pretrained(folder / "best")
    run(config, tmp_path, *RISING, "--run.max_steps", str(best["step"]))
    assert weights_sha256(tmp_path / "hf") == weights_sha256(folder / "best")


def test_a_run_that_gets_no_better_ends_as_finished(config, rising, tmp_path, capsys):
    _, losses = rising
    best = min(losses)
    end = next(step for step in losses if step - (best := min(best, step, key=losses.get)) == 4)
    run(config, tmp_path, *KEEP, *RISING, "--run.watch.patience", "2")
    assert steps_of(tmp_path) == end < 12
    assert (tmp_path / "hf").is_dir() and best_of(tmp_path)["step"] == best
    told = f"of step {best} for 2 validations (run.watch.patience)"
    assert told in capsys.readouterr().err
    run(config, tmp_path, *KEEP, *RISING, "--run.watch.patience", "2")
    assert "is finished" in capsys.readouterr().out and steps_of(tmp_path) == end


def test_a_run_that_ended_early_goes_on_with_more_patience(config, rising, tmp_path):
    """And does so from the step that it ended at, also where no checkpoint was due there or before."""
    folder, _ = rising
    for patience in ("1", "2"):
        run(config, tmp_path, *KEEP, *RISING, *RARE, "--run.watch.patience", patience)
        ended = steps_of(tmp_path)
        assert ended < 12 and steps_done(tmp_path) == ended
    run(config, tmp_path / "at once", *KEEP, *RISING, *RARE, "--run.watch.patience", "2")
    assert facts(tmp_path / "at once") == facts(tmp_path)
    run(config, tmp_path, *KEEP, *RISING, *RARE)
    assert facts(tmp_path) == facts(folder)
    assert weights_sha256(tmp_path / "best") == weights_sha256(folder / "best")


def test_a_run_that_ended_early_goes_on_without_keep_best_and_the_best_model_stays(config, tmp_path, recwarn):
    run(config, tmp_path, *KEEP, *RISING, "--run.watch.patience", "1")
    best, weights = best_of(tmp_path), weights_sha256(tmp_path / "best")
    assert steps_of(tmp_path) < 12
    run(config, tmp_path, *RISING)
    assert steps_of(tmp_path) == 12 and not (tmp_path / "stopped.json").exists()
    assert best_of(tmp_path) == best and weights_sha256(tmp_path / "best") == weights
    report = (tmp_path / "report.html").read_text()
    assert "finished, 12 of 12 steps" in report
    assert "by validation_loss of the validations at which run.watch.keep_best named it (" in report
    assert [str(warning.message) for warning in recwarn if "callbacks used to create" in str(warning.message)] == []
    run(config, tmp_path, *KEEP, *RISING, "--run.max_steps", "16")
    assert steps_of(tmp_path) == 16 and best_of(tmp_path) == best


def test_a_best_model_stays_where_the_checkpoint_says_nothing_of_it(config, tmp_path):
    run(config, tmp_path, *KEEP, *RISING, "--run.watch.patience", "1")
    best, (newest, *_) = best_of(tmp_path), checkpoints(tmp_path / "checkpoints")
    checkpoint = read_checkpoint(newest)
    checkpoint["callbacks"] = {name: state for name, state in checkpoint["callbacks"].items() if name != "KeepBest"}
    write_checkpoint(checkpoint, newest)
    run(config, tmp_path, *RISING)
    assert steps_of(tmp_path) == 12 and best_of(tmp_path) == best


def test_a_run_that_ended_early_is_not_made_longer_with_the_same_patience_and_says_so(config, tmp_path, capsys):
    options = (*KEEP, *RISING, "--run.watch.patience", "1")
    run(config, tmp_path, *options)
    ended, written = steps_of(tmp_path), (tmp_path / "config.yaml").read_text()
    run(config, tmp_path, *options, "--run.max_steps", "16")
    told = capsys.readouterr()
    assert f"it ended after step {ended} by run.watch.patience 1; raise that or leave it out to resume" in told.err
    assert "is finished" in told.out and "goes on" not in told.err
    assert steps_of(tmp_path) == ended and (tmp_path / "config.yaml").read_text() == written


@pytest.mark.parametrize(("hook", "step"), [("batch ends", 3), ("validated", 4), ("trained", 6)])
def test_patience_is_the_same_for_a_run_that_was_cut(config, rising, tmp_path, hook, step):
    options = (*KEEP, *RISING, "--run.watch.patience", "2")
    run(config, tmp_path / "whole", *options)
    ended = steps_of(tmp_path / "whole")
    with pytest.raises(Cut):
        run(config, tmp_path / "cut", *options, callbacks=[Interrupt(hook, min(step, ended))])
    run(config, tmp_path / "cut", *options)
    assert facts(tmp_path / "cut") == facts(tmp_path / "whole")
    assert best_of(tmp_path / "cut") == best_of(tmp_path / "whole")
    assert weights_sha256(tmp_path / "cut" / "best") == weights_sha256(tmp_path / "whole" / "best")


def test_under_a_moving_average_the_best_model_is_the_one_that_was_validated(config, tmp_path):
    run(config, tmp_path, *KEEP, "--optim.ema", "0.9")
    assert best_of(tmp_path)["step"] == 12
    assert weights_sha256(tmp_path / "best") == weights_sha256(tmp_path / "hf")


def test_adapters_are_added_to_the_best_model_and_go_on_being_trained(config, tmp_path):
    lora = ("--policy", '{"decoder": {"treatment": "lora", "rank": 2}, "cross_attention": "frozen"}')
    run(config, tmp_path / "kept", *KEEP, *lora)
    run(config, tmp_path / "plain", *lora)
    assert weights_sha256(tmp_path / "kept" / "hf") == weights_sha256(tmp_path / "plain" / "hf")
    assert best_of(tmp_path / "kept")["step"] == 12
    assert weights_sha256(tmp_path / "kept" / "best") == weights_sha256(tmp_path / "plain" / "hf")


def test_the_best_by_one_source_has_its_processor_and_how_it_was_asked_with_it(tmp_path):
    image_text = str(write_image_text_recipe(tmp_path))
    run(image_text, tmp_path / "run", "--run.watch.keep_best", "validation_loss_captions")
    assert best_of(tmp_path / "run")["column"] == "validation_loss_captions"
    assert (tmp_path / "run" / "best" / "preprocessor_config.json").exists() or (
        tmp_path / "run" / "best" / "processor_config.json"
    ).exists()
    prompts = [read_trained_prompts(tmp_path / "run" / name) for name in ("best", "hf")]
    assert prompts[0] == prompts[1] is not None


def test_an_unknown_column_is_refused_before_anything_is_read(config, tmp_path):
    with pytest.raises(ValueError, match=r"keep_best is validaton_loss, which no validation gives; did you mean valid"):
        run(config, tmp_path / "run", "--run.watch.keep_best", "validaton_loss", "--train_text", "nowhere.jsonl")
    assert not (tmp_path / "run").exists()


class WorseThanEver(Callback):
    """Makes what a run trained before it was cut unlike what it trains afterwards."""

    def on_train_batch_start(self, trainer, module, *_):
        module.model.model.norm.weight.data.mul_(0.5)


def test_a_model_of_steps_that_were_taken_otherwise_later_does_not_stay(config, tmp_path, capsys):
    with pytest.raises(Cut):
        run(config, tmp_path, *KEEP, "--run.checkpoint_every", "5", callbacks=[Interrupt("validated", 8)])
    assert best_of(tmp_path)["step"] == 8
    run(config, tmp_path, *KEEP, "--run.checkpoint_every", "5", callbacks=[WorseThanEver()])
    assert not (tmp_path / "best").exists()
    assert "is removed: the run has repeated the steps of this model" in capsys.readouterr().err


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("best", ".best.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / ".best.new", tmp_path / "best")
    assert [path.name for path in (tmp_path / "best").iterdir()] == [".best.new"]
    shutil.rmtree(tmp_path / "best")
    assert list(tmp_path.iterdir()) == []
