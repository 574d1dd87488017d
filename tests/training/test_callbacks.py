"""Seeds, log files, progress lines and signals by themselves; `test_run.py` has them at work."""

import csv
import os
import random
import signal
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from arlow_vl.training.callbacks import Checkpointing
from arlow_vl.training.logs import LineFile, MetricsFile, StepLog
from arlow_vl.training.look_results import Look, SampleLook, SourceLook
from arlow_vl.training.progress import Progress
from arlow_vl.training.seeds import seed_batch
from arlow_vl.training.settings import RunConfig
from arlow_vl.training.steps import Reading, Readings


def draws(seed: int, batch_idx: int) -> tuple[float, ...]:
    seed_batch(seed, batch_idx, device_type="cpu")
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_random_numbers_of_a_batch_do_not_depend_on_what_ran_before():
    first = draws(0, 5)
    torch.rand(100)
    draws(0, 6)
    assert draws(0, 5) == first


@pytest.mark.parametrize("other", [(0, 6), (1, 5)])
def test_each_batch_and_seed_has_random_numbers_of_its_own(other):
    assert all(a != b for a, b in zip(draws(0, 5), draws(*other), strict=True))


def test_the_random_numbers_are_those_of_manual_seed():
    seed_batch(3, 17, device_type="cpu")
    ours = torch.get_rng_state()
    seed_batch(3, 17, device_type="another")
    assert torch.equal(ours, torch.get_rng_state())


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    path = tmp_path / "lines"
    path.write_text("1\n2\n3")
    LineFile(path).keep(lambda line: True)
    assert path.read_text() == "1\n2\n"


def test_a_long_file_is_not_held_in_memory(tmp_path):
    path = tmp_path / "lines"
    path.write_text(f"{'a' * 9_999}\n" * 1_000)
    tracemalloc.start()
    LineFile(path).keep(lambda line: True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size == 10**7 and peak < 10**6


def test_the_step_log_drops_what_comes_after_the_checkpoint(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 9)) + '{"st')
    StepLog(path).keep_until(6)
    assert path.read_text().count("\n") == 6


def test_metrics_drop_later_rows_and_the_validation_that_will_be_run_again(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, ("validation_loss",), ())
    gap = "," * (len(file.columns) - 2)
    rows = [",".join(file.columns), f"3,1.5{gap}", f"3{gap},1.4", f"4,1.3{gap}", f"4{gap},1.2", f"5,1.1{gap}"]
    path.write_text("\n".join(rows) + "\n")
    file.keep_until(4)
    assert path.read_text().splitlines() == rows[:4]


def test_the_row_of_a_step_that_was_skipped_is_empty_and_stays_where_the_run_goes_on_behind_it(tmp_path, capsys):
    file = MetricsFile(tmp_path / "metrics.csv", ("validation_loss",), ())
    file.keep_until(0)
    file.step_read(replace(READING, step=1, loss=0.0, left_out="skipped"))
    written = file.lines.path.read_text()
    assert written.splitlines()[1] == "1" + "," * (len(file.columns) - 1)
    file.keep_until(1)
    assert file.lines.path.read_text() == written
    assert "lacks" not in capsys.readouterr().err


def test_metrics_of_a_version_with_other_columns_go_on_under_those_of_now(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss,lr,old,validation_loss\n1,1.5,0.1,7,\n1,,,,1.4\n2,1.3,0.1,7,\n")
    file = MetricsFile(path, ("validation_loss",), ())
    file.keep_until(2)
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    assert tuple(rows[0]) == file.columns
    assert [(row["step"], row["train_loss"], row["lr"], row["validation_loss"]) for row in rows] == [
        ("1", "1.5", "0.1", ""),
        ("1", "", "", "1.4"),
        ("2", "1.3", "0.1", ""),
    ]


READING = Reading(
    step=105, loss=2.5, lr=0.1, grad_norm=1.0, component_norms={}, tokens=1000, images=50, keys=["a"], seconds=2.0
)


def test_a_log_gets_a_plain_line_with_speed_and_time_left(capsys):
    progress = Progress(max_steps=2000, seconds=0.0)
    progress.begin(100)
    progress.began -= 10
    progress.display.shown -= 4
    progress.step_read(READING)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "step 105/2,000  loss 2.500  250 tokens/s  12 images/s  1:03:10 left"


def test_a_line_of_a_skipped_step_tells_no_loss_of_it(capsys):
    progress = Progress(max_steps=2000, seconds=0.0)
    progress.begin(100)
    progress.step_read(replace(READING, left_out="skipped"))
    assert capsys.readouterr().out.startswith("step 105/2,000  skipped  0 tokens/s  ")


def test_the_line_says_what_of_the_device_is_used_and_a_wait_that_is_worth_a_word(capsys):
    progress = Progress(max_steps=2000, seconds=0.0)
    progress.begin(100)
    progress.step_read(replace(READING, mfu=0.314, data_wait=0.02))
    progress.step_read(replace(READING, step=106, mfu=0.314, data_wait=0.25))
    first, second = capsys.readouterr().out.splitlines()
    assert "  MFU 31%  " in first and "waiting" not in first
    assert "  MFU 31%  25% waiting for data  " in second


def test_a_look_is_a_line_in_which_no_text_acts(capsys):
    sample = SampleLook("k", prompt="", reference="a red\x1b[2J circle", written="a blue square")
    source = SourceLook("captions", [sample, sample], loss=2.0, exchanged_loss=2.5)
    Progress(max_steps=10).look_taken(Look(5, [source]))
    assert capsys.readouterr().out == (
        "step 5  writes a blue square for a red\\x1b[2J circle; "
        "captions: 1 different of 2 texts, a wrong image costs 0.500 nats\n"
    )


def test_a_log_gets_no_line_before_its_time(capsys):
    progress = Progress(max_steps=2000, seconds=60.0)
    progress.begin(0)
    for step in range(1, 50):
        progress.step_read(replace(READING, step=step))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_signals_within_two_seconds_are_one_stop_and_a_later_one_ends_the_process(tmp_path, monkeypatch, second):
    clock, ended = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "kill", lambda _, number: ended.append(number))
    run = RunConfig(max_steps=1, validate_every=1, checkpoint_every=1)
    stop = Checkpointing(tmp_path, run, Readings([], every=1), began=0.0)
    for seconds in (0.0, 0.02, 1.9, 2.1):
        assert not ended
        clock[0] = 100.0 + seconds
        stop._note(second if seconds else signal.SIGTERM, None)
    assert (ended, stop.signal) == ([second], signal.SIGTERM)
