"""Adapters, compiled blocks and the guards of a step, on one process and on two: what one process trains as written."""

import json
from pathlib import Path

import pytest

from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.training.compiled_runs import run_compiled
from tests.training.rank_recipes import write_shared_image_text, write_shared_text
from tests.training.rank_runs import run_on_ranks

LORA = ("--policy.decoder", "{treatment: lora, rank: 4, targets: [q_proj, v_proj, down_proj]}")
COMPILE = ("--run.compile", "true")
TWO = ("--run.engine.devices", "2")
ROUNDING = 2e-5
"""Relative: sums in another order, in float32, and a dozen steps of training let it grow."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, str]:
    write = {"text": write_shared_text, "image_text": write_shared_image_text}
    return {stage: recipe(tmp_path_factory.mktemp(stage)) for stage, recipe in write.items()}


def options(config: str, folder: Path, *more: str) -> list[str]:
    short = ("--run.max_steps", "2", "--run.validate_every", "2")
    return ["--config", config, "--run_dir", str(folder), *short, *more]


def losses(folder: Path) -> list[float]:
    return [float.fromhex(json.loads(line)["loss"]) for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_adapters_in_compiled_blocks_train_as_those_that_are_not_on_one_process_and_two(configs, tmp_path, stage):
    """On one aot_eager, as it also parts the graphs of gradients, of which frozen weights have none."""
    fit(parse_recipe(options(configs[stage], tmp_path / "plain", *LORA)))
    expected = losses(tmp_path / "plain")
    assert len(set(expected)) == len(expected)
    for ranks, more, backend in ((1, (), "aot_eager"), (2, TWO, "eager")):
        run = {"options": options(configs[stage], tmp_path / f"{ranks}", *LORA, *COMPILE, *more)}
        (told,) = run_compiled(tmp_path, run, backend=backend, ranks=ranks)
        assert told["graphs"][-1] > 0 and not told["breaks"]
        assert losses(tmp_path / f"{ranks}") == pytest.approx(expected, rel=ROUNDING)


WAYS = {
    "compiled": COMPILE,
    "adapters": LORA,
    "muon": ("--optim.optimizer", "muon"),
    "guarded": ("--optim.max_spike", "1.5", "--optim.ema", "0.9", "--run.gradient_checkpointing", "true"),
}


@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_two_processes_train_what_one_does_in_every_way(configs, tmp_path, stage):
    runs = []
    for name, way in WAYS.items():
        plain = () if name == "compiled" else way
        fit(parse_recipe(options(configs[stage], tmp_path / "one" / name, *plain)))
        if name != "compiled":
            runs.append({"options": options(configs[stage], tmp_path / "two" / name, *way, *TWO)})
    assert run_on_ranks(2, tmp_path, *runs) == 0
    compiled = {"options": options(configs[stage], tmp_path / "two" / "compiled", *COMPILE, *TWO)}
    run_compiled(tmp_path, compiled, backend="eager", ranks=2)
    for name in WAYS:
        assert losses(tmp_path / "two" / name) == pytest.approx(losses(tmp_path / "one" / name), rel=ROUNDING), name
