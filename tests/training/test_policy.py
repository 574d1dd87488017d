"""What a recipe says of each part of a model is read, or refused in one sentence."""

import pytest
import torch

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.training.adapters import merge_adapters
from arlow_vl.training.optimizers import GATE_LR, build_optimizer
from arlow_vl.training.policy import PartPolicy, read_policy
from arlow_vl.training.settings import OptimConfig
from arlow_vl.training.stages import apply_policy, check_frozen, check_trainable, hash_frozen, trained_names

OPTIM = OptimConfig(lr=0.1, weight_decay=0.2)
FROZEN_PATHWAY = {"cross_attention": "frozen"}


@pytest.fixture
def model(small_config) -> ArlowForCausalLM:
    torch.manual_seed(0)
    return ArlowForCausalLM(small_config)


def treated(model, **words) -> dict:
    apply_policy(model, words)
    return read_policy(words)


def test_a_word_alone_is_a_treatment():
    assert read_policy({"decoder": "train"}) == {"decoder": PartPolicy(treatment="train")}


def test_a_policy_that_is_read_reads_as_itself():
    policy = read_policy({"decoder": {"treatment": "train", "blocks": [1, 3], "lr": 0.5}, "projector": "frozen"})
    assert read_policy(policy) == policy
    assert policy["decoder"].blocks == (1, 3)


@pytest.mark.parametrize(
    ("component", "value", "sentence"),
    [
        ("decoder", "thaw", "policy.decoder is thaw, not one of frozen, train, lora"),
        ("decoder", None, "policy.decoder is None, not one of"),
        ("decoder", {"lr": 1.0}, "policy.decoder is None, not one of"),
        ("decodr", "train", "policy has no decodr; did you mean decoder?"),
        ("decoder", {"treatment": "train", "block": [0, 1]}, "policy.decoder has no block; did you mean blocks?"),
        ("decoder", {"treatment": "train", "rank": 4}, "policy.decoder.rank is given, but only lora has it"),
        ("decoder", {"treatment": "frozen", "lr": 1.0}, "policy.decoder.lr is given, but the component is frozen"),
        ("decoder", {"treatment": "train", "lr": 0}, "policy.decoder.lr must be a number over 0, got 0"),
        ("decoder", {"treatment": "train", "lr": "fast"}, "policy.decoder.lr must be a number over 0, got 'fast'"),
        ("decoder", {"treatment": "train", "blocks": [3, 3]}, r"blocks must be \[first, end\] with first < end"),
        ("decoder", {"treatment": "train", "blocks": 3}, r"blocks must be \[first, end\] with first < end, got 3"),
        ("decoder", {"treatment": "lora", "rank": 0}, "policy.decoder.rank must be a whole number over 0"),
        ("decoder", {"treatment": "lora", "targets": "q_proj"}, "targets must be a list of names"),
        ("projector", {"treatment": "train", "blocks": [0, 1]}, "a projector has no blocks"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(component, value, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        read_policy({component: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"treatment": "train", "blocks": [2, 99]}, "policy.decoder.blocks ends at 99, but there are"),
        ({"treatment": "lora", "targets": ["query"]}, "policy.decoder.targets: no linear layer is called query; there"),
    ],
)
def test_what_the_model_does_not_have_is_refused(model, part, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply_policy(model, {"decoder": part} | FROZEN_PATHWAY)


def test_blocks_alone_are_trained_and_all_else_of_the_component_keeps_its_bytes(model):
    policy = treated(model, decoder={"treatment": "train", "blocks": [1, 2]}, cross_attention="frozen")
    names = trained_names(model, policy)
    assert names
    assert all(name.startswith("model.layers.1.") and "cross_block" not in name for name in names)
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"} <= set(
        hash_frozen(model, policy)
    )
    assert model.model.layers[1].training
    assert not model.model.layers[0].training


def test_blocks_of_the_cross_attention_pathway_are_layers_of_the_decoder(model):
    policy = treated(model, decoder="frozen", cross_attention={"treatment": "train", "blocks": [3, 4]})
    assert {name.split(".")[2] for name in trained_names(model, policy)} == {"3"}


def test_blocks_that_hold_nothing_of_the_component_are_refused(model):
    with pytest.raises(ValueError, match=r"policy.cross_attention.blocks \[0, 1\] holds nothing"):
        apply_policy(model, {"decoder": "frozen", "cross_attention": {"treatment": "train", "blocks": [0, 1]}})


def test_each_part_has_its_own_rate_and_decay(model):
    policy = treated(model, decoder={"treatment": "train", "lr": 0.01, "weight_decay": 0.5}, cross_attention="train")
    groups = build_optimizer(model, OPTIM, policy).param_groups
    assert {group["kind"]: (group["lr"], group["weight_decay"]) for group in groups} == {
        "matrices": (0.1, 0.2),
        "others": (0.1, 0.0),
        "gates": (GATE_LR * 0.1, 0.0),
        "decoder matrices": (0.01, 0.5),
        "decoder others": (0.01, 0.0),
    }


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest(model):
    optim = OptimConfig(lr=0.1, optimizer="muon")
    treated(model, decoder="train", cross_attention="frozen")
    optimizer = build_optimizer(model, optim)
    kinds = {group["kind"]: group["params"] for group in optimizer.param_groups}
    assert list(kinds) == ["matrices muon", "others"]
    assert all(parameter.ndim == 2 for parameter in kinds["matrices muon"])
    assert any(parameter is model.model.embed_tokens.weight for parameter in kinds["others"])
    check_trainable(model, read_policy({"decoder": "train"} | FROZEN_PATHWAY), optimizer)


def test_muon_makes_the_step_that_torch_makes(model):
    optim = OptimConfig(lr=0.1, optimizer="muon", weight_decay=0.0)
    weight = model.model.layers[0].mlp.up_proj.weight
    alone = torch.nn.Parameter(weight.detach().clone())
    alone.grad = torch.randn_like(alone)
    treated(model, decoder="train", cross_attention="frozen")
    optimizer = build_optimizer(model, optim)
    weight.grad = alone.grad.clone()
    optimizer.step()
    torch.optim.Muon([alone], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    torch.testing.assert_close(weight.detach(), alone.detach())


class TestAdapters:
    LORA = {"decoder": {"treatment": "lora", "rank": 2, "targets": ["q_proj", "down_proj"]}} | FROZEN_PATHWAY

    def test_they_change_nothing_at_first(self, model):
        ids = torch.arange(8)[None] + 10
        before = model.eval()(ids).logits
        treated(model, **self.LORA)
        assert torch.equal(model.eval()(ids).logits, before)

    def test_they_alone_are_trained(self, model):
        policy = treated(model, **self.LORA)
        names = trained_names(model, policy)
        assert len(names) == 2 * 2 * len(model.model.layers)
        assert all("lora_" in name for name in names)
        check_trainable(model, policy, build_optimizer(model, OPTIM, policy))

    def test_what_they_stand_beside_keeps_its_bytes_while_they_learn(self, model):
        policy = treated(model, **self.LORA)
        optimizer, before = build_optimizer(model, OPTIM, policy), hash_frozen(model, policy)
        assert any("q_proj.base_layer.weight" in name for name in before)
        for _ in range(2):
            model(torch.arange(8)[None] + 10, labels=torch.arange(8)[None] + 10).loss.backward()
            optimizer.step()
        check_frozen(before, hash_frozen(model, policy))

    def test_what_they_have_learnt_is_added_to_the_weights_at_the_end(self, model):
        names = set(model.state_dict())
        treated(model, **self.LORA)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        ids = torch.arange(8)[None] + 10
        with_adapters = model.eval()(ids).logits
        merge_adapters(model)
        assert set(model.state_dict()) == names
        torch.testing.assert_close(model.eval()(ids).logits, with_adapters)

    def test_ranks_differ_by_component(self, model):
        treated(model, decoder={"treatment": "lora", "rank": 2}, cross_attention={"treatment": "lora", "rank": 3})
        shapes = {name: p.shape[0] for name, p in model.named_parameters() if "lora_A" in name}
        assert {rank for name, rank in shapes.items() if "cross_block" in name} == {3}
        assert {rank for name, rank in shapes.items() if "cross_block" not in name} == {2}
        assert not any("lm_head" in name for name in shapes)
