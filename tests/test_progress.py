"""Progress of long jobs, in a log and on a terminal."""

import io
import re

from arlow_vl.progress import ProgressLine


def test_a_log_gets_a_line_with_speed_and_time_left_and_a_last_one(capsys):
    progress = ProgressLine("encoder features", "images", seconds=0.0)
    progress.began -= 10
    progress(500, 2000)
    progress(2000, 2000)
    lines = ["encoder features: 500 of 2,000 images  50 images/s  0:00:30 left"]
    assert capsys.readouterr().out.splitlines() == [*lines, "encoder features: 2,000 images in 0:00:10"]


def test_one_of_a_thing_is_told_in_the_singular(capsys):
    ProgressLine("index of captions", "parts")(1, 1)
    ProgressLine("tokenising", "MB")(1, 1)
    assert capsys.readouterr().out.splitlines() == [
        "index of captions: 1 part in 0:00:00",
        "tokenising: 1 MB in 0:00:00",
    ]


def test_a_log_gets_no_line_before_its_time(capsys):
    progress = ProgressLine("captions", "prompts")
    for done in range(100):
        progress(done, 100)
    assert capsys.readouterr().out == ""


def test_nothing_done_yet_is_no_division_by_zero(capsys):
    ProgressLine("captions", "prompts", seconds=0.0)(0, 3)
    assert "left" not in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_with_a_bar_that_moves(monkeypatch):
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    progress = ProgressLine("captions", "prompts")
    progress.display.seconds = 0.0
    progress(12, 24)
    progress(24, 24)
    moving, last = terminal.getvalue().split("\r\033[K")[1:]
    assert re.match(r"captions: \[#{12} {12}\] 12 of 24 prompts", moving)
    assert last.startswith("captions: 24 prompts in") and last.endswith("\n")
