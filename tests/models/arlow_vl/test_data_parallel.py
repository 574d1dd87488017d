"""Training where a batch has no image: every weight that is trained takes part, and nothing else changes."""

import os
import sys
from pathlib import Path

import pytest
import torch

from arlow_vl.models.arlow.layers_arlow import with_zero_gradients
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from tests.conftest import open_gates
from tests.forked import Forked
from tests.models.arlow.test_parallel_plans import free_port

IMAGE, SIZE = 7, 32


@pytest.fixture(params=["test_vit", "test_efficientnet"])
def model(request, small_config):
    vision_config = ArlowVisionConfig(timm_name=request.param, image_size=SIZE)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=small_config, vision_config=vision_config))
    open_gates(model)
    return model


def batch(with_image: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(20, 300, (2, 6))
    if with_image:
        ids[0, 1] = ids[1, 2] = IMAGE
    images = {"pixel_values": torch.randn(2, 3, SIZE, SIZE)} if with_image else {}
    return {"input_ids": ids, "labels": ids} | images


def run_ranks(folder: Path, engine: str, count: int) -> list[dict]:
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    ranks = [
        Forked(
            [sys.executable, "-m", "tests.models.arlow_vl.data_parallel_rank", str(folder), engine],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(count)]


def saved(model, folder: Path) -> list[dict]:
    model.save_pretrained(folder)
    batches = [batch(with_image=True), batch(with_image=False)]
    for rank, inputs in enumerate(batches):
        torch.save(inputs, folder / f"inputs{rank}.pt")
    return batches


def test_a_batch_without_images_gives_every_weight_a_gradient_of_zeros_or_more(model):
    model.train()(**batch(with_image=False)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        is_of_images = any(part in name for part in ("cross_block", "projector", "vision"))
        assert not is_of_images or not parameter.grad.any(), name


@pytest.mark.parametrize("frozen", ["vision", "projector", "cross_block"])
def test_what_is_frozen_stays_without_a_gradient(model, frozen):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    model.train()(**batch(with_image=False)).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {
        name for name, _ in model.named_parameters() if frozen in name
    }


def test_what_is_trained_on_a_frozen_decoder_has_a_gradient_without_images(model):
    """A stage keeps what is frozen in eval mode, the decoder too, in which the trained parts are."""
    trained = ("cross_block", "projector")
    for name, module in model.eval().named_modules():
        module.training = any(part in name for part in trained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    model(**batch(with_image=False)).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if any(part in name for part in trained)}


def test_a_batch_without_images_is_computed_bit_for_bit_as_without_the_vision_part(model):
    """Also with weights that are no numbers, which 0 times them would spread."""
    inputs = batch(with_image=False)
    expected = model.eval()(**inputs).logits
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("cross_block", "projector")):
            parameter.data.fill_(torch.nan)
    assert torch.equal(model.train()(**inputs).logits.view(torch.int32), expected.view(torch.int32))


def test_zeros_keep_their_sign_when_weights_are_put_into_their_graph():
    states, weight = torch.tensor([0.0, -0.0, 1.0]), torch.full((2, 2), torch.inf, requires_grad=True)
    together = with_zero_gradients(states, [weight, None])
    assert torch.equal(together.view(torch.int32), states.view(torch.int32))
    together.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(2, 2))


@pytest.mark.parametrize("model", ["test_vit"], indirect=True)
def test_two_ranks_of_which_one_has_no_image_train_as_one_process_does(model, tmp_path):
    batches = saved(model, tmp_path)
    model.train()
    for inputs in batches:
        (model(**inputs).loss / 2).backward()
    for rank in run_ranks(tmp_path, "ddp", 2):
        for name, parameter in model.named_parameters():
            # the mean over ranks is another order of sums
            torch.testing.assert_close(rank["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", ["test_vit"], indirect=True)
def test_fsdp2_takes_the_model_in_bf16_and_a_rank_without_images(model, tmp_path):
    batches = saved(model, tmp_path)
    model = ArlowVLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).train()
    losses = []
    for inputs in batches:
        loss = model(**inputs).loss
        (loss / 2).backward()
        losses.append(loss.detach())
    for number, rank in enumerate(run_ranks(tmp_path, "fsdp2", 2)):
        # kernels may sum in another order where weights lie elsewhere in memory, then round to bf16
        torch.testing.assert_close(rank["loss"], losses[number], rtol=1e-3, atol=0)
        for name, parameter in model.named_parameters():
            assert rank["gradients"][name].isfinite().all(), name
            # one rounding of each rank's gradient to bf16, and of their sum
            error = (rank["gradients"][name].float() - parameter.grad.float()).norm()
            assert error <= 0.02 * parameter.grad.float().norm() + 1e-6, name
