"""The benchmark of a GPU: its runner and result files here, its sections at toy size where slow tests run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.benchmarks.gpu.__main__ import SECTIONS, build_parser
from experiments.benchmarks.gpu.arithmetic import text_work
from experiments.benchmarks.gpu.bench import Bench, Figure
from experiments.benchmarks.gpu.sections import Section, run_sections

ROOT = Path(__file__).parents[1]


def two_figures(bench):
    yield Figure("speed", 2.0, "x", goal=1.5)
    yield Figure("memory", 0.3, "x", predicted=0.1, goal=0.2, is_most=True, note="of plain")


def fails(bench):
    yield Figure("before", 1.0, "x")
    raise RuntimeError("device-side\nassert")


def hangs(bench):
    yield Figure("before", 1.0, "x")
    time.sleep(60)


def dies(bench):
    yield Figure("before", 1.0, "x")
    os.kill(os.getpid(), signal.SIGKILL)


def run(sections, out, seconds=60.0):
    made = [Section(one.__name__, one, 20.0 if one is not hangs else 2.0) for one in sections]
    return run_sections(made, out, seconds=seconds, toy=True, command="python -m the.benchmark")


def test_a_section_that_fails_keeps_what_it_measured_and_the_next_goes_on(tmp_path, capfd):
    assert run([fails, dies, hangs, two_figures], tmp_path) == ["fails", "dies", "hangs"]
    errors = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert errors["fails"]["error"] == "RuntimeError: device-side assert"
    assert errors["dies"]["error"] == "its process died with exit code -9"
    assert errors["hangs"]["error"] == "ended at its limit of 2 s"
    assert [len(values["figures"]) for values in errors.values()].count(1) == 3
    assert errors["two_figures"]["error"] is None and errors["two_figures"]["machine"]["versions"]["torch"]
    summary = (tmp_path / "summary.md").read_text()
    assert "| memory | 0.3 | x | 0.1 | at most 0.2 | fell short | of plain |" in summary.partition("# Fell short")[2]
    assert "| speed | 2 | x |  | 1.5 | reached |  |" in (tmp_path / "two_figures.md").read_text()
    assert "| hangs | ended at its limit of 2 s |" in summary and "python -m the.benchmark" in summary


def test_no_section_starts_when_the_time_of_all_is_spent(tmp_path):
    assert run([two_figures], tmp_path, seconds=0.0) == ["two_figures"]
    assert "not started" in (tmp_path / "two_figures.json").read_text()


def test_a_value_that_is_no_number_falls_short():
    assert Figure("speed", float("nan"), "x", goal=1.0).falls_short
    assert not Figure("speed", 1.0, "x").falls_short


def test_the_sections_fit_into_a_quarter_of_an_hour_of_one_gpu():
    arguments = build_parser().parse_args(["--out", "somewhere"])
    assert sum(section.limit for section in SECTIONS) <= 60 * arguments.minutes <= 60 * 14
    assert arguments.only == [section.name for section in SECTIONS]


def test_an_unknown_section_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--out", "somewhere", "--only", "mfu"])
    assert "text_training" in capsys.readouterr().err


def test_operations_of_a_step_are_those_that_others_count():
    """The table of limits: 0.72 and 5.13 GFLOP a token at 12 x 768 and 16 x 2048, rows of 2,048 tokens."""
    from arlow_vl import ArlowConfig

    def gflop(hidden, depth, heads, keys, intermediate):
        sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": depth}
        config = ArlowConfig(**sizes, num_attention_heads=heads, num_key_value_heads=keys, vocab_size=32768)
        return text_work(config, 2048, 2048).operations / 2048 / 1e9

    assert gflop(768, 12, 12, 4, 2048) == pytest.approx(0.72, rel=0.02)
    assert gflop(2048, 16, 16, 4, 5632) == pytest.approx(5.13, rel=0.02)


def test_rates_are_measured_where_the_card_is_unknown():
    bench = Bench("cpu", toy=True, ends=0.0)
    assert bench.datasheet == (bench.matmul, bench.bandwidth) and min(bench.datasheet) > 0


@pytest.mark.slow
def test_every_section_runs_at_toy_size(tmp_path):
    """In a process of its own: torch's compiler cannot trace the annotation checks of the tests."""
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", "--toy", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for section in SECTIONS:
        values = json.loads((tmp_path / f"{section.name}.json").read_text())
        assert values["error"] is None and values["figures"], section.name
        assert all(figure["value"] == figure["value"] for figure in values["figures"]), section.name
