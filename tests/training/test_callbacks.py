"""Seeds, log files and progress lines by themselves; `test_run.py` has them at work."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from arlow_vl.training.callbacks import LineFile, MetricsFile, StepLog, seed_batch
from arlow_vl.training.progress import Progress
from arlow_vl.training.steps import Reading


def draws(seed: int, batch_idx: int) -> tuple[float, ...]:
    seed_batch(seed, batch_idx)
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_random_numbers_of_a_batch_do_not_depend_on_what_ran_before():
    first = draws(0, 5)
    torch.rand(100)
    draws(0, 6)
    assert draws(0, 5) == first


@pytest.mark.parametrize("other", [(0, 6), (1, 5)])
def test_each_batch_and_seed_has_random_numbers_of_its_own(other):
    assert all(a != b for a, b in zip(draws(0, 5), draws(*other), strict=True))


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    path = tmp_path / "lines"
    path.write_text("1\n2\n3")
    LineFile(path).keep(lambda line: True)
    assert path.read_text() == "1\n2\n"


def test_the_step_log_drops_what_comes_after_the_checkpoint(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 9)) + '{"st')
    StepLog(path).keep_until(6)
    assert path.read_text().count("\n") == 6


def test_metrics_drop_later_rows_and_the_validation_that_will_be_run_again(tmp_path):
    path = tmp_path / "metrics.csv"
    rows = ["step,train_loss,lr,validation_loss", "3,1.5,0.1,", "3,,,1.4", "4,1.3,0.1,", "4,,,1.2", "5,1.1,0.1,"]
    path.write_text("\n".join(rows) + "\n")
    MetricsFile(path, ("validation_loss",), ()).keep_until(4)
    assert path.read_text().splitlines() == rows[:4]


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


def test_a_log_gets_no_line_before_its_time(capsys):
    progress = Progress(max_steps=2000, seconds=60.0)
    progress.begin(0)
    for step in range(1, 50):
        progress.step_read(replace(READING, step=step))
    assert capsys.readouterr().out == ""
