"""Blocks that are compiled train what those that are not train, out of a few graphs, and leave nothing of it behind."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from arlow_vl.training.build import build_stage
from arlow_vl.training.compiling import encoder_blocks
from arlow_vl.training.dry_run import dry_run
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.forked import by_fork
from tests.tiny_runs import TINY_MODEL, weights_sha256, write_image_text_recipe, write_text_recipe
from tests.training.compiled_runs import run_compiled
from tests.training.rank_recipes import write_shared_image_text
from vision.encoder import VisionEncoder

COMPILE = ("--run.compile", "true")
ROUNDING = 2e-5
"""Relative: fused kernels add in another order, in float32, and a dozen steps of training let it grow."""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """Without dropout, of which compiled code draws other numbers."""
    return str(write_text_recipe(tmp_path_factory.mktemp("text"), model=TINY_MODEL | {"attention_dropout": 0.0}))


@pytest.fixture(scope="module")
def image_text(tmp_path_factory) -> str:
    """Packed rows with and without images, an encoder that is trained."""
    return write_shared_image_text(tmp_path_factory.mktemp("image-text"))


@pytest.fixture(scope="module")
def cached(tmp_path_factory) -> str:
    """Batches that all have images, whose features were computed before."""
    return str(write_image_text_recipe(tmp_path_factory.mktemp("cached"), text_model={"attention_dropout": 0.0}))


def options(config: str, folder: Path, *more: str) -> list[str]:
    return ["--config", config, "--run_dir", str(folder), *more]


def losses(folder: Path) -> list[float]:
    return [float.fromhex(json.loads(line)["loss"]) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_text_is_trained_as_ever_out_of_one_graph_a_kind_of_layer(text, tmp_path, monkeypatch):
    monkeypatch.setattr("arlow_vl.training.launch.subprocess", by_fork)
    looked_at = ("--run.watch.show_samples", "2")
    fit(parse_recipe(options(text, tmp_path / "plain")))
    (told,) = run_compiled(
        tmp_path, {"options": options(text, tmp_path / "run", *COMPILE, *looked_at)}, backend="eager"
    )
    assert set(told["graphs"]) == {2}, "a layer with a cross block and one without, for steps alone"
    assert not told["breaks"]
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    assert weights_sha256(tmp_path / "run" / "hf") == weights_sha256(tmp_path / "plain" / "hf")


@pytest.mark.slow
def test_ragged_batches_with_images_are_trained_out_of_a_few_graphs(image_text, tmp_path):
    """aot_eager, as it also parts the graphs of gradients: here with layers that are computed twice."""
    checkpointing = ("--run.gradient_checkpointing", "true")
    fit(parse_recipe(options(image_text, tmp_path / "plain", *checkpointing)))
    (told,) = run_compiled(
        tmp_path, {"options": options(image_text, tmp_path / "run", *COMPILE, *checkpointing)}, backend="aot_eager"
    )
    graphs = told["graphs"]
    assert graphs[-1] == graphs[len(graphs) * 2 // 3] <= 8, graphs
    assert not told["breaks"]
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["text", "image_text"])
def test_machine_code_trains_the_same_and_a_run_that_is_stopped_the_very_same(text, cached, tmp_path, stage):
    config = text if stage == "text" else cached
    stopped = {
        "options": options(config, tmp_path / "stopped", *COMPILE),
        "stop": {"step": 4, "number": signal.SIGTERM},
    }
    whole = {"options": options(config, tmp_path / "whole", *COMPILE)}
    run_compiled(tmp_path, whole, stopped, stopped | {"stop": None}, backend="inductor")
    fit(parse_recipe(options(config, tmp_path / "plain")))
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "plain"), rel=ROUNDING)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    tensors = [load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("whole", "plain")]
    assert tensors[0].keys() == tensors[1].keys()


def test_layers_and_the_encoders_blocks_are_compiled_and_their_tensors_keep_their_names(image_text):
    plain, compiled = (
        build_stage(parse_recipe(["--config", image_text, *more])).module.model for more in ((), COMPILE)
    )
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    is_compiled = {name for name, part in compiled.named_modules() if part._compiled_call_impl is not None}
    blocks = (f"model.vision.backbone.blocks.{number}" for number in range(6))
    assert is_compiled == {*blocks, *(f"model.language_model.layers.{number}" for number in range(2))}


@pytest.mark.parametrize(("encoder", "count"), [("test_efficientnet", 5), ("test_convnext", 4), ("test_resnet", 0)])
def test_of_a_feature_map_net_stages_are_compiled_where_timm_has_named_them(encoder, count):
    assert len(encoder_blocks(VisionEncoder(encoder).backbone)) == count


def test_a_dry_run_says_that_blocks_are_compiled(text):
    recipe = parse_recipe(["--config", text])
    compiled = replace(recipe, run=replace(recipe.run, compile=True))
    assert "compiled: 2 blocks, each by itself" in list(dry_run(compiled))
    assert not any(line.startswith("compiled") for line in dry_run(recipe))


def test_a_run_that_was_begun_otherwise_does_not_go_on_compiled(text, tmp_path):
    fit(parse_recipe(options(text, tmp_path)))
    with pytest.raises(ValueError, match=r"run.compile was False and is True"):
        fit(parse_recipe(options(text, tmp_path, *COMPILE)))
