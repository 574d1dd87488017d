"""Which parameters decay, and the learning rate of each step."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.training.dry_run import memory_of
from arlow_vl.training.optimizers import GATE_LR, build_optimizer, build_schedule, leave_out, moments_of
from arlow_vl.training.recipe import OptimConfig
from arlow_vl.training.schedule import lr_factor
from vision.encoder import VisionEncoder
from vision.projector import PerceiverResampler

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


@pytest.mark.parametrize("encoder", ["test_vit", "test_vit2", "test_coatnet"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_weights_of_layers_decay_and_take_muon_so_no_tables_tokens_or_latents(encoder, optimizer):
    resampler = PerceiverResampler(8, 8, num_latents=2, num_heads=2, num_tile_ids=3)
    model = nn.ModuleDict({"vision": VisionEncoder(encoder), "projector": resampler})
    groups = build_optimizer(model, replace(OPTIM, optimizer=optimizer)).param_groups
    found = {name for group in groups if group["weight_decay"] for name in names_in(group, model)}
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert found == {f"{name}.weight" for name in layers}
    assert all(group["weight_decay"] for group in groups if "muon" in group["kind"])
    raw = {name.split(".")[-1] for name, parameter in model.named_parameters() if parameter.ndim > 1} - {"weight"}
    assert raw > {"latents"}, "the encoder has a table or a token"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_dry_run_counts_what_the_optimizer_keeps(small_config, optimizer):
    small_config.vocab_size = 20_000  # of which Muon takes nothing
    model, optim = ArlowForCausalLM(small_config), replace(OPTIM, optimizer=optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    built = build_optimizer(model, optim)
    built.step()
    kept = sum(x.numel() * x.element_size() for state in built.state.values() for x in state.values() if x.ndim)
    assert f"optimizer {kept / 2**20:.1f})" in memory_of(model, optim)
    moments = sum(moments_of(name, p, optim) * p.numel() * p.element_size() for name, p in model.named_parameters())
    assert moments == kept


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


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("constant", 20, 1.0),
        ("linear", 4, 1.0),
        ("linear", 12, 0.6),
        ("linear", 20, 0.2),
        ("wsd", 15, 1.0),
        ("wsd", 16, 1.0),
        ("wsd", 18, 0.6),
        ("wsd", 20, 0.2),
        ("wsd", 99, 0.2),
    ],
)
def test_each_schedule_goes_its_way_after_warm_up(schedule, step, factor):
    optim = replace(OPTIM, schedule=schedule, decay_steps=4 if schedule == "wsd" else None)
    assert lr_factor(step, optim=optim, max_steps=21) == pytest.approx(factor)
    assert lr_factor(1, optim=optim, max_steps=21) == 0.5


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("cosine", lambda optimizer, steps: transformers.get_cosine_schedule_with_warmup(optimizer, 0, steps)),
        ("linear", lambda optimizer, steps: transformers.get_linear_schedule_with_warmup(optimizer, 0, steps)),
        ("constant", lambda optimizer, steps: transformers.get_constant_schedule(optimizer)),
        (
            "wsd",
            lambda optimizer, steps: transformers.get_wsd_schedule(
                optimizer, 0, 10, num_training_steps=steps, decay_type="linear"
            ),
        ),
    ],
)
def test_behind_warm_up_the_rates_are_those_of_transformers(small_config, schedule, theirs):
    """Theirs end at a step that is not made, ours at the last one."""
    optim = OptimConfig(lr=0.5, lr_floor=0.0, schedule=schedule, decay_steps=10 if schedule == "wsd" else None)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule_of_theirs = theirs(optimizer, 40)
    for step in range(41):
        assert lr_factor(step, optim=optim, max_steps=41) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        schedule_of_theirs.step()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_is_left_out_changes_neither_weights_nor_state(small_config, optimizer):
    model = ArlowForCausalLM(small_config)
    built = build_optimizer(model, replace(OPTIM, optimizer=optimizer))
    for is_bad in (False, True, False, True):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if is_bad else 0.1)
        before = copy.deepcopy((model.state_dict(), built.state_dict()["state"]))
        leave_out(built, torch.tensor(is_bad))
        built.step()
        after = model.state_dict(), built.state_dict()["state"]
        same = all(torch.equal(before[0][name], after[0][name]) for name in after[0])
        assert same == is_bad
        if is_bad:
            for number, state in before[1].items():
                assert all(torch.equal(value, after[1][number][name]) for name, value in state.items())


def test_two_optimizers_in_one_are_loaded_as_they_were_saved(small_config):
    first, second = ArlowForCausalLM(small_config), ArlowForCausalLM(small_config)
    second.load_state_dict(first.state_dict())
    optimizers = [build_optimizer(model, replace(OPTIM, optimizer="muon")) for model in (first, second)]

    def step(model, optimizer):
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    step(first, optimizers[0])
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip((first, second), optimizers, strict=True):
        optimizer.param_groups[0]["lr"] = 0.01  # as a schedule does
        step(model, optimizer)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
