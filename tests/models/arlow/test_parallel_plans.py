"""The plans by which transformers and serving engines cut the decoder over processes."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from tests.conftest import open_gates
from tests.models.arlow.tensor_parallel_rank import results
from tests.models.arlow.test_modeling_arlow import text, text_with_images

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("changes", [{}, {"use_cross_attention": False}, {"mlp_gated": False}], ids=str)
def test_every_rule_of_the_plans_names_a_module(small_config, changes):
    config = ArlowConfig.from_dict(small_config.to_dict() | changes)
    model = ArlowForCausalLM(config)
    names = {re.sub(r"\d+", "*", name) for name, _ in model.named_modules()}
    assert set(model.tp_plan) <= names
    assert set(model.pp_plan) <= names


def test_the_tensor_parallel_plan_leaves_no_projection_whole(open_model):
    projections = {
        re.sub(r"\d+", "*", name) for name, part in open_model.named_modules() if isinstance(part, torch.nn.Linear)
    }
    assert projections <= set(open_model.tp_plan)
    for name in projections - {"lm_head"}:
        writes = name.endswith(("o_proj", "down_proj"))
        assert open_model.tp_plan[name] == ("rowwise" if writes else "colwise"), name


def test_the_pipeline_plan_lists_the_stages_in_the_order_of_the_forward_pass(open_model):
    assert [name for name in open_model.pp_plan if name != "lm_head"] == [
        "model.embed_tokens",
        "model.layers",
        "model.norm",
    ]
    assert open_model.pp_plan["lm_head"] == (["hidden_states"], ["logits"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(folder: Path, count: int) -> list[dict]:
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.arlow.tensor_parallel_rank", str(folder)],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors
        assert "TP rules were not applied" not in errors
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(count)]


@pytest.fixture
def seeing_model(small_config):
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=32)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=small_config, vision_config=vision_config)).eval()
    open_gates(model)
    return model


def test_a_vision_language_model_shards_its_decoder_and_leaves_encoder_and_projector_whole(seeing_model, open_model):
    decoder = {name.replace("model.", "model.language_model.", 1): way for name, way in open_model.tp_plan.items()}
    assert seeing_model.tp_plan == decoder
    assert set(seeing_model.tp_plan) <= {re.sub(r"\d+", "*", name) for name, _ in seeing_model.named_modules()}


@pytest.mark.slow
def test_two_processes_compute_what_one_does(small_config, seeing_model, tmp_path):
    input_ids, states = text_with_images()
    words = {"text": {"input_ids": text(2, 9)}}
    models = {"seeing": seeing_model}
    given = {
        "seeing": words | {"images": {"input_ids": input_ids, "pixel_values": torch.randn(len(states), 3, 32, 32)}}
    }
    for case, changes in {"cross": {}, "text": {"use_cross_attention": False}}.items():
        models[case] = ArlowForCausalLM(ArlowConfig.from_dict(small_config.to_dict() | changes)).eval()
        open_gates(models[case])
        given[case] = words
    given["cross"] = words | {"images": {"input_ids": input_ids, "encoder_hidden_states": states}}
    expected = {}
    for case, model in models.items():
        model.save_pretrained(tmp_path / case)
        torch.save(given[case], tmp_path / case / "inputs.pt")
        expected[case] = {name: results(model, inputs) for name, inputs in given[case].items()}

    for rank in run_ranks(tmp_path, 2):
        for case, alone in expected.items():
            blocks = {"self_attn", "mlp", "embed_tokens"} | ({"cross_block"} if case != "text" else set())
            assert blocks <= {part for name in rank[case]["sharded"] for part in name.split(".")}
            for name, computed in rank[case]["computed"].items():
                assert torch.equal(computed["generated"], alone[name]["generated"])
                # Each process sums its half of a row-wise product: float32 in another order.
                torch.testing.assert_close(computed["logits"], alone[name]["logits"])
                torch.testing.assert_close(computed["gradients"], alone[name]["gradients"], rtol=1e-4, atol=1e-5)
