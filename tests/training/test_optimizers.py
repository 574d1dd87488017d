"""Which parameters decay, and the learning rate of each step."""

import pytest

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.training.optimizers import GATE_LR, build_optimizer, build_schedule, lr_factor
from arlow_vl.training.recipe import OptimConfig

OPTIM = OptimConfig(lr=0.5, lr_floor=0.2, warmup_steps=4)


def names_in(group, model) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_only_matrices_decay(small_config):
    model = ArlowForCausalLM(small_config)
    decaying, others, gates = build_optimizer(model, OPTIM).param_groups
    assert [group["weight_decay"] for group in (decaying, others, gates)] == [OPTIM.weight_decay, 0, 0]
    assert all("_proj.weight" in name for name in names_in(decaying, model))
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= names_in(others, model)


def test_gates_learn_faster_for_a_closed_one_holds_its_block_back(small_config):
    model = ArlowForCausalLM(small_config)
    *others, gates = build_optimizer(model, OPTIM).param_groups
    assert names_in(gates, model) == {
        f"model.layers.{layer}.cross_block.{gate}" for layer in (1, 3) for gate in ("attn_gate", "mlp_gate")
    }
    assert gates["lr"] == GATE_LR * OPTIM.lr
    assert {group["lr"] for group in others} == {OPTIM.lr}


def test_frozen_parameters_are_not_in_the_optimizer(small_config):
    model = ArlowForCausalLM(small_config).requires_grad_(False)
    model.model.norm.requires_grad_(True)
    (group,) = build_optimizer(model, OPTIM).param_groups
    assert [id(p) for p in group["params"]] == [id(model.model.norm.weight)]


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (12, 0.6), (20, 0.2), (21, 0.2), (1000, 0.2)]
)
def test_warm_up_is_linear_and_the_cosine_ends_at_the_floor(step, factor):
    assert lr_factor(step, optim=OPTIM, max_steps=21) == pytest.approx(factor)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert lr_factor(0, optim=OptimConfig(lr=0.5), max_steps=1) == 1.0


def test_the_schedule_is_stored_without_objects(small_config):
    optimizer = build_optimizer(ArlowForCausalLM(small_config), OPTIM)
    state = build_schedule(optimizer, OPTIM, 21).state_dict()
    assert state["lr_lambdas"] == [{}, {}, {}]
