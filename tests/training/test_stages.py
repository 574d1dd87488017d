"""A stage trains what its policy says, and nothing else changes."""

import pytest
import torch
from torch import nn

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.training.components import block_count, component_of, is_treated
from arlow_vl.training.policy import PartPolicy, read_policy
from arlow_vl.training.stages import (
    apply_policy,
    check_frozen,
    check_trainable,
    hash_frozen,
    set_modes,
    trained_names,
)
from vision.encoder import VisionEncoder

TEXT_STAGE = read_policy({"decoder": "train", "cross_attention": "frozen"})


class ImageModel(nn.Module):
    """Names as the vision-language model has them."""

    def __init__(self):
        super().__init__()
        self.vision = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.projector = nn.Linear(4, 4)
        self.cross_block = nn.Linear(4, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

    def forward(self, x):
        return self.decoder(self.cross_block(self.projector(self.vision(x))))


IMAGE_STAGE = read_policy({"vision": "frozen", "projector": "train", "cross_attention": "train", "decoder": "frozen"})


@pytest.fixture
def text_model(small_config):
    return ArlowForCausalLM(small_config)


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("model.vision.backbone.blocks.0.attn.qkv.weight", "vision"),
        ("model.projector.fc1.weight", "projector"),
        ("model.language_model.layers.3.cross_block.attn_gate", "cross_attention"),
        ("model.layers.3.self_attn.q_proj.weight", "decoder"),
        ("lm_head.weight", "decoder"),
    ],
)
def test_the_dotted_name_tells_the_component(name, component):
    assert component_of(name) == component


@pytest.mark.parametrize(
    ("timm_name", "blocks", "of_the_first"),
    [
        ("test_vit", 6, "blocks.0."),
        ("test_efficientnet", 5, "blocks.0."),
        ("test_convnext", 4, "stages.0."),
        ("test_nfnet", 4, "stages.0."),
    ],
)
def test_a_feature_map_nets_blocks_are_its_stages(timm_name, blocks, of_the_first):
    names = [f"model.vision.{name}" for name, _ in VisionEncoder(timm_name).named_parameters()]
    treated = [name for name in names if is_treated(name, PartPolicy(treatment="train", blocks=(0, 1)))]
    assert block_count(names) == blocks
    assert treated == [name for name in names if f".backbone.{of_the_first}" in name]


def test_what_makes_patches_is_no_block():
    stem = ["model.vision.backbone.patch_embed.backbone.stages.0.blocks.1.conv1.weight", "model.projector.fc1.weight"]
    assert block_count(stem) == 0
    assert block_count(["model.language_model.layers.3.cross_block.attn_gate", "layers.1.norm.weight"]) == 4


def test_only_what_the_policy_trains_has_a_gradient(text_model):
    apply_policy(text_model, TEXT_STAGE)
    for name, parameter in text_model.named_parameters():
        assert parameter.requires_grad == ("cross_block" not in name)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ({"decoder": "train"}, "policy says nothing about cross_attention"),
        ({**TEXT_STAGE, "vision": "frozen"}, "ArlowForCausalLM has no such component"),
        ({"decoder": "frozen", "cross_attention": "frozen"}, "nothing to train"),
        ({"decodr": "train"}, "policy has no decodr; did you mean decoder?"),
        ({"decoder": "thaw"}, "policy.decoder is thaw, not one of frozen, train"),
    ],
)
def test_a_policy_that_does_not_fit_the_model_is_refused(text_model, policy, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply_policy(text_model, policy)


def test_frozen_batch_norm_does_not_move_and_frozen_dropout_drops_nothing():
    model = ImageModel()
    apply_policy(model, IMAGE_STAGE)
    model.train()
    set_modes(model, IMAGE_STAGE, training=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(8, 4)
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_trained_is_in_training_mode():
    model = ImageModel()
    policy = {**IMAGE_STAGE, "decoder": PartPolicy(treatment="train")}
    apply_policy(model, policy)
    assert model.decoder[1].training
    set_modes(model, policy, training=False)
    assert not model.decoder[1].training


@pytest.mark.parametrize("treatment", ["train", "lora"])
def test_all_that_is_trained_of_an_encoder_gets_a_gradient(treatment):
    """The net has a norm and a linear layer in front of its head, which no token goes through."""
    model = ImageModel()
    model.vision = VisionEncoder("test_mambaout", image_size=64)
    policy = read_policy({**IMAGE_STAGE, "vision": treatment})
    apply_policy(model, policy)
    model.vision(torch.randn(2, 3, 64, 64)).pow(2).sum().backward()
    trained = {name for name in trained_names(model, policy) if component_of(name) == "vision"}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not any(".head." in name for name in trained)
    check_trainable(model, policy, optimizer_over(model, trained_names(model, policy)))


def optimizer_over(model, names) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for name, parameter in model.named_parameters() if name in names], lr=1.0)


def test_model_and_optimizer_that_follow_the_policy_pass(text_model):
    apply_policy(text_model, TEXT_STAGE)
    check_trainable(text_model, TEXT_STAGE, optimizer_over(text_model, trained_names(text_model, TEXT_STAGE)))


def test_a_parameter_that_the_optimizer_lacks_is_named(text_model):
    apply_policy(text_model, TEXT_STAGE)
    names = set(trained_names(text_model, TEXT_STAGE)) - {"model.norm.weight"}
    with pytest.raises(ValueError, match=r"model.norm.weight differs .* the optimizer freezes it"):
        check_trainable(text_model, TEXT_STAGE, optimizer_over(text_model, names))


def test_a_parameter_that_was_thawed_behind_the_policy_is_named(text_model):
    apply_policy(text_model, TEXT_STAGE)
    gate = "model.layers.1.cross_block.attn_gate"
    text_model.get_parameter(gate).requires_grad_(True)
    with pytest.raises(ValueError, match=f"{gate} differs .* requires_grad trains it"):
        check_trainable(text_model, TEXT_STAGE, optimizer_over(text_model, trained_names(text_model, TEXT_STAGE)))


def test_one_changed_bit_of_a_frozen_tensor_is_named():
    model = ImageModel()
    before = hash_frozen(model, IMAGE_STAGE)
    model.vision[0].running_mean[2] += 1e-7
    with pytest.raises(ValueError, match=r"vision.0.running_mean is frozen in this stage but its bytes changed"):
        check_frozen(before, hash_frozen(model, IMAGE_STAGE))


def test_frozen_hashes_cover_every_tensor_of_the_frozen_components_and_no_other():
    assert set(hash_frozen(ImageModel(), IMAGE_STAGE)) == {
        *(f"vision.0.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *(f"decoder.0.{name}" for name in ("weight", "bias")),
    }
