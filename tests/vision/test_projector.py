import pytest
import torch
from torch.nn import functional as F

from vision.projector import LinearProjector, MLPProjector, PerceiverResampler


def perceiver(in_dim=6, out_dim=12, **kwargs) -> PerceiverResampler:
    return PerceiverResampler(in_dim, out_dim, num_latents=3, num_heads=2, **kwargs)


def project(projector, features, lengths):
    """(K, features) -> (K, dim), or (images, latents, dim) of a perceiver."""
    return projector(features, lengths) if isinstance(projector, PerceiverResampler) else projector(features)


KINDS = {"linear": LinearProjector, "mlp": MLPProjector, "perceiver": perceiver}
LENGTHS = torch.tensor([2, 5, 2])


def test_it_is_two_linear_layers_with_a_norm_before_each_and_a_gelu_between():
    projector = MLPProjector(6, 10)
    features = torch.randn(2, 3, 6)
    hidden = F.layer_norm(F.linear(F.layer_norm(features, (6,)), projector.fc1.weight, projector.fc1.bias), (10,))
    expected = F.linear(F.gelu(hidden), projector.fc2.weight, projector.fc2.bias)
    torch.testing.assert_close(projector(features), expected)


def test_a_linear_projector_is_a_norm_and_a_linear_layer():
    projector, features = LinearProjector(6, 10), torch.randn(2, 3, 6)
    expected = F.linear(F.layer_norm(features, (6,)), projector.fc.weight, projector.fc.bias)
    torch.testing.assert_close(projector(features), expected)


@pytest.mark.parametrize("kind", [LinearProjector, MLPProjector])
def test_tokens_do_not_mix(kind):
    projector = kind(6, 10)
    features = torch.randn(2, 3, 6)
    torch.testing.assert_close(projector(features)[1, 2], projector(features[1:, 2:])[0, 0])


def test_the_scale_of_the_encoder_does_not_matter():
    projector = MLPProjector(64, 10)
    features = torch.randn(1, 3, 64)
    # LayerNorm adds 1e-5 to the variance, of which the smaller of the two scales is 100
    torch.testing.assert_close(projector(10 * features), projector(1000 * features), rtol=1e-4, atol=1e-6)


def test_features_of_another_width_are_refused():
    with pytest.raises(RuntimeError, match="normalized_shape"):
        MLPProjector(6, 10)(torch.randn(1, 3, 5))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_its_dtype_is_that_of_its_weights(kind):
    assert kind(6, 12).to(torch.bfloat16).dtype == torch.bfloat16


def test_a_perceiver_gives_every_image_the_same_number_of_tokens():
    assert perceiver()(torch.randn(9, 6), LENGTHS).shape == (3, 3, 12)


def test_a_perceiver_reads_each_image_as_if_it_were_alone():
    projector, features = perceiver(), torch.randn(9, 6)
    alone = [projector(part, torch.tensor([len(part)])) for part in features.split(LENGTHS.tolist())]
    torch.testing.assert_close(projector(features, LENGTHS), torch.cat(alone))


def test_a_perceiver_does_not_see_the_order_of_tokens_and_sees_every_token():
    projector, features = perceiver(), torch.randn(5, 6)
    before = projector(features, torch.tensor([5]))
    torch.testing.assert_close(projector(features.flip(0), torch.tensor([5])), before)
    for token in range(5):
        changed = features.clone()
        changed[token, 0] += 1
        assert not torch.allclose(projector(changed, torch.tensor([5])), before)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_gradients_reach_every_parameter(kind):
    projector = kind(6, 12)
    weights = torch.randn(12)  # a norm's outputs add up to a constant
    (project(projector, torch.randn(9, 6), LENGTHS) @ weights).pow(2).sum().backward()
    assert all(parameter.grad.any() for parameter in projector.parameters())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_learns_one_batch_by_heart(kind):
    projector, features = kind(32, 12), torch.randn(9, 32)
    target = torch.randn(3, 3, 12) if isinstance(projector, PerceiverResampler) else torch.randn(9, 12)
    target = F.layer_norm(target, (12,))
    optimizer = torch.optim.Adam(projector.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(project(projector, features, LENGTHS), target)
        loss.backward()
        optimizer.step()
    assert loss < 0.02  # the targets' variance is 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_tiles_have_a_learned_place_that_starts_as_none(kind):
    projector, features, tile_ids = kind(6, 12, num_places=5), torch.randn(2, 3, 6), torch.tensor([0, 4])
    assert torch.equal(projector.place(features, tile_ids), features)
    projector.tile_embedding.weight.data[4] = 1.0
    assert torch.equal(projector.place(features, tile_ids), features + torch.tensor([0.0, 1.0])[:, None, None])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_images_without_tiles_cost_no_places(kind):
    assert not any("tile" in name for name in kind(6, 12).state_dict())
