"""`python -m arlow_vl.evaluation.harnesses`, and what the documents say of it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from arlow_vl.evaluation.harnesses.__main__ import main
from experiments.harnesses.environment import RESULTS, Row, report, table

ROOT = Path(__file__).parents[3]


def started(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["harnesses", *words])
    return main()


def test_help_gives_an_example_of_each_harness(monkeypatch, capsys):
    assert started(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("lm-eval run --model arlow_vl", "lmms-eval eval --model arlow_vl", "run.py"))


def test_another_word_is_answered_with_the_usage(monkeypatch, capsys):
    assert started(monkeypatch, "lm_eval") == 2
    assert "usage: python -m arlow_vl.evaluation.harnesses HARNESS" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_a_harness_that_is_not_installed_is_a_sentence(monkeypatch, capsys):
    assert started(monkeypatch, "lm-eval", "run") == 2
    assert capsys.readouterr().err == "lm-eval: lm_eval is not installed; docs/harnesses.md says how\n"


def test_vlmevalkit_wants_a_model_and_a_script(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("ARLOW_VL_MODEL", raising=False)
    assert started(monkeypatch, "vlmevalkit", "run.py") == 2
    assert capsys.readouterr().err == "vlmevalkit: ARLOW_VL_MODEL is not set; let it name the model folder\n"
    monkeypatch.setenv("ARLOW_VL_MODEL", "hf")
    assert started(monkeypatch, "vlmevalkit", str(tmp_path / "run.py")) == 2
    assert "is no file; name run.py of a checkout of VLMEvalKit" in capsys.readouterr().err


def test_a_score_that_differs_from_ours_ends_a_trial(monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.harnesses.environment.RESULTS", tmp_path)
    report("same", [Row("run", "acc", 0.5, 0.5)], {"harness": "1"})
    with pytest.raises(SystemExit, match="a score differs from ours"):
        report("other", [Row("run", "acc", 0.5, 0.25)], {"harness": "1"})


@pytest.mark.parametrize("name", ["lm_eval", "lmms_eval", "vlmevalkit"])
def test_the_tables_of_the_documents_are_those_of_the_results(name):
    values = json.loads((RESULTS / f"{name}.json").read_text())
    assert table(values) in (ROOT / "experiments" / "harnesses" / "README.md").read_text()
    assert all(row["harness"] == pytest.approx(row["ours"], rel=1e-9) for row in values["rows"])
