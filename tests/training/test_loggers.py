"""Loggers get every reading, validation and look; one that is not installed is told of before anything is computed."""

import importlib.util
import sys
import types

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from arlow_vl.training.loggers import TrackioLogger, build_logger, markdown_table, run_id
from arlow_vl.training.logs import metrics_of
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.refusals import MODULES, refuse_missing_loggers
from arlow_vl.training.run import fit
from tests.tiny_runs import write_image_text_recipe, write_text_recipe
from tests.training.test_callbacks import READING
from tests.training.test_run import Cut, Interrupt

missing = [name for name, modules in MODULES.items() if not any(map(importlib.util.find_spec, modules))]


@pytest.mark.parametrize("name", missing)
def test_a_logger_that_is_not_installed_is_refused_before_compute(tmp_path, name):
    config = write_text_recipe(tmp_path)
    arguments = ["--config", str(config), "--run.watch.loggers", f"[{name}]", "--train_text", "nowhere.jsonl"]
    with pytest.raises(
        ValueError, match=rf"loggers names {name}, which is not installed; .*pip install 'arlow-vl\[{name}\]'"
    ):
        fit(parse_recipe(arguments))
    assert not (tmp_path / "run").exists()


def test_what_is_installed_is_taken():
    refuse_missing_loggers([])
    refuse_missing_loggers([name for name in MODULES if name not in missing])


def events_of(run_dir):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "tensors": 0, "images": 0})
    return events.Reload()


def test_tensorboard_gets_steps_validations_texts_and_images(tmp_path):
    pytest.importorskip("tensorboard")
    config = write_image_text_recipe(tmp_path)
    options = ["--run.watch.loggers", "[tensorboard]", "--run.watch.show_samples", "2"]
    fit(parse_recipe(["--config", str(config), *options]))
    events = events_of(tmp_path / "run")
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("validation_loss_captions")] == [3, 6]
    assert [event.step for event in events.Scalars("image_use_questions")] == [3, 6]
    for name in ("mfu", "data_wait", "memory_gib", "grad_norm_projector", "gate_attention_layer 1"):
        assert events.Scalars(name)
    tensors = events.Tags()["tensors"]
    assert any("looks/captions" in name for name in tensors)
    assert len([name for name in events.Tags()["images"] if name.startswith("looks/")]) >= 3


def test_tensorboard_hides_what_a_killed_run_wrote_after_its_checkpoint(tmp_path):
    pytest.importorskip("tensorboard")
    config = write_text_recipe(tmp_path)
    arguments = ["--config", str(config), "--run.watch.loggers", "[tensorboard]"]
    with pytest.raises(Cut):
        fit(parse_recipe(arguments), callbacks=[Interrupt("batch ends", 8)])
    fit(parse_recipe(arguments))
    steps = [event.step for event in events_of(tmp_path / "run").Scalars("train_loss")]
    assert steps == list(range(1, 13))


def test_a_run_goes_on_without_its_loggers_and_without_a_warning(tmp_path, recwarn):
    pytest.importorskip("tensorboard")
    arguments = ["--config", str(write_text_recipe(tmp_path))]
    with pytest.raises(Cut):
        fit(parse_recipe([*arguments, "--run.watch.loggers", "[tensorboard]"]), callbacks=[Interrupt("batch ends", 3)])
    fit(parse_recipe(arguments))
    assert [str(warning.message) for warning in recwarn if "callbacks used to create" in str(warning.message)] == []


class FakeTrackio(types.ModuleType):
    """The calls of trackio's documentation."""

    def __init__(self):
        super().__init__("trackio")
        self.calls: list = []

    def init(self, *, project, name, config, resume):
        self.calls.append(("init", project, name, resume))

    def log(self, metrics, step=None):
        self.calls.append(("log", metrics, step))

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize(("resumes", "resume"), [(False, "never"), (True, "allow")])
def test_trackio_is_called_as_its_documentation_says_with_a_folder_of_the_run(tmp_path, monkeypatch, resumes, resume):
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    monkeypatch.setenv("TRACKIO_DIR_BEFORE", "")  # so that monkeypatch puts the environment back
    logger = TrackioLogger("mine", tmp_path, resumes=resumes)
    import os

    assert os.environ.pop("TRACKIO_DIR") == str(tmp_path)
    logger.log_hyperparams({"a": 1})
    logger.log_metrics(metrics_of(READING), 105)
    logger.finalize("success")
    assert trackio.calls[0] == ("init", "arlow", "mine", resume)
    name, metrics, step = trackio.calls[1]
    assert (name, step) == ("log", 105) and metrics["tokens_per_second"] == 500 and metrics["train_loss"] == 2.5
    assert trackio.calls[2:] == [("finish",)]


def test_tensorboard_lies_in_the_run_folder(tmp_path):
    pytest.importorskip("tensorboard")
    logger = build_logger("tensorboard", tmp_path, step=0, mlflow_run=None)
    assert isinstance(logger, TensorBoardLogger) and logger.log_dir == str(tmp_path / "tensorboard")


def test_a_run_has_the_same_name_when_it_goes_on_and_another_folder_has_another(tmp_path):
    assert run_id(tmp_path / "a") == run_id(tmp_path / "b" / ".." / "a") != run_id(tmp_path / "b" / "a")


def test_no_text_ends_its_cell_or_acts_as_markup():
    table = markdown_table([["k", "a | b", "`<script>`\n# c"]])
    assert table.splitlines() == [
        "| sample | reference | written |",
        "| --- | --- | --- |",
        "| `k` | `a \\| b` | `'<script>' # c` |",
    ]
