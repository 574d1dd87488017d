"""The sweep over sizes: its line, its plan, and its recipes, which `arlow fit` understands."""

import math

import pytest

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.sizes import fields_of_shape, lr_of_width
from experiments.scaling import sweep
from tests.tiny_runs import sentences, write_jsonl


def test_a_power_law_is_found_and_carried_on():
    law = [(10.0**n, 8 * (10.0**n) ** -0.05) for n in range(9, 13)]
    line = sweep.fit_line(law[:3])
    assert line == pytest.approx((math.log(8), -0.05))
    assert sweep.on_line(line, law[3][0]) == pytest.approx(law[3][1])


def test_the_last_run_is_predicted_and_does_not_pull_the_line():
    runs = sweep.planned()
    losses = [8 * run.compute**-0.05 for run in runs]
    text, figures = sweep.report(runs, [*losses[:-1], 2 * losses[-1]])
    assert figures["line"] == pytest.approx((math.log(8), -0.05))
    assert text.count("(fitted) | +0.00% |") + text.count("(fitted) | -0.00% |") == 3
    assert "(predicted) | +100.00% |" in text


def test_runs_grow_in_compute_and_count_the_parameters_of_the_model():
    runs = sweep.planned()
    assert [run.compute for run in runs] == sorted(run.compute for run in runs)
    for run in runs:
        fields = fields_of_shape(run.hidden_size, run.layers)
        model = ArlowForCausalLM(ArlowConfig(vocab_size=sweep.VOCAB, use_cross_attention=False, **fields))
        assert run.parameters == sum(p.numel() for p in model.parameters() if p.ndim == 2)


def test_a_recipe_of_the_sweep_has_the_rate_of_its_width(tmp_path):
    text = write_jsonl(tmp_path / "text.jsonl", sentences(5))
    run = sweep.planned()[2]
    recipe = parse_recipe(["--config", str(sweep.write_recipe(run, tmp_path, text, text))])
    assert recipe.optim.lr == lr_of_width(run.hidden_size) and recipe.run.max_steps == run.steps


@pytest.mark.slow
def test_a_sweep_over_little_text_ends_with_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "VOCAB", 300)
    text = write_jsonl(tmp_path / "text.jsonl", sentences(400))
    names = ["--train", str(text), "--validation", str(text), "--out", str(tmp_path), "--share", "0"]
    sweep.main(names)
    result = (tmp_path / "result.md").read_text()
    assert result.strip() in capsys.readouterr().out and "| 128x4 |" in result
