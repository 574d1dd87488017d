import pytest
import torch
from torch.nn import functional as F

from vision.places import NOWHERE, grid_places
from vision.projector import LinearProjector, MLPProjector, PerceiverResampler, PlaceEmbedding


def perceiver(in_dim=6, out_dim=12, **kwargs) -> PerceiverResampler:
    return PerceiverResampler(in_dim, out_dim, num_latents=3, num_heads=2, **kwargs)


def project(projector, features, lengths):
    """(K, features) -> (K, dim), or (images, latents, dim) of a perceiver."""
    if isinstance(projector, PerceiverResampler):
        return projector(features, nowhere(features), lengths)
    return projector(features, nowhere(features))


def nowhere(features):
    """Places of tokens that have none."""
    return torch.full((*features.shape[:-1], 2), NOWHERE)


KINDS = {"linear": LinearProjector, "mlp": MLPProjector, "perceiver": perceiver}
LENGTHS = torch.tensor([2, 5, 2])


def test_it_is_two_linear_layers_with_a_norm_before_each_and_a_gelu_between():
    projector = MLPProjector(6, 10)
    features = torch.randn(2, 3, 6)
    hidden = F.layer_norm(F.linear(F.layer_norm(features, (6,)), projector.fc1.weight, projector.fc1.bias), (10,))
    expected = F.linear(F.gelu(hidden), projector.fc2.weight, projector.fc2.bias)
    torch.testing.assert_close(projector(features, nowhere(features)), expected)


def test_a_linear_projector_is_a_norm_and_a_linear_layer():
    projector, features = LinearProjector(6, 10), torch.randn(2, 3, 6)
    expected = F.linear(F.layer_norm(features, (6,)), projector.fc.weight, projector.fc.bias)
    torch.testing.assert_close(projector(features, nowhere(features)), expected)


@pytest.mark.parametrize("kind", [LinearProjector, MLPProjector])
def test_tokens_do_not_mix(kind):
    projector = kind(6, 10)
    features = torch.randn(2, 3, 6)
    torch.testing.assert_close(
        project(projector, features, None)[1, 2], project(projector, features[1:, 2:], None)[0, 0]
    )


def test_the_scale_of_the_encoder_does_not_matter():
    projector = MLPProjector(64, 10)
    features = torch.randn(1, 3, 64)
    # LayerNorm adds 1e-5 to the variance, of which the smaller of the two scales is 100
    small, large = (project(projector, scale * features, None) for scale in (10, 1000))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-6)


def test_features_of_another_width_are_refused():
    with pytest.raises(RuntimeError, match="normalized_shape"):
        project(MLPProjector(6, 10), torch.randn(1, 3, 5), None)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_its_dtype_is_that_of_its_weights(kind):
    assert kind(6, 12).to(torch.bfloat16).dtype == torch.bfloat16


def test_a_perceiver_gives_every_image_the_same_number_of_tokens():
    assert project(perceiver(), torch.randn(9, 6), LENGTHS).shape == (3, 3, 12)


def test_a_perceiver_reads_each_image_as_if_it_were_alone():
    projector, features = perceiver(), torch.randn(9, 6)
    alone = [project(projector, part, torch.tensor([len(part)])) for part in features.split(LENGTHS.tolist())]
    torch.testing.assert_close(project(projector, features, LENGTHS), torch.cat(alone))


def test_a_perceiver_does_not_see_the_order_of_tokens_without_places_and_sees_every_token():
    projector, features = perceiver(), torch.randn(5, 6)
    before = project(projector, features, torch.tensor([5]))
    torch.testing.assert_close(project(projector, features.flip(0), torch.tensor([5])), before)
    for token in range(5):
        changed = features.clone()
        changed[token, 0] += 1
        assert not torch.allclose(project(projector, changed, torch.tensor([5])), before)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_gradients_reach_every_parameter(kind):
    projector = kind(6, 12)
    weights = torch.randn(12)  # a norm's outputs add up to a constant
    features, places = torch.randn(9, 6), torch.rand(9, 2)
    more = [LENGTHS] if isinstance(projector, PerceiverResampler) else []
    (projector(features, places, *more) @ weights).pow(2).sum().backward()
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
def test_tiles_have_a_learned_mark_that_starts_as_none(kind):
    projector, features, tile_ids = kind(6, 12, num_tile_ids=5), torch.randn(2, 3, 6), torch.tensor([0, 4])
    assert torch.equal(projector.mark_tiles(features, tile_ids), features)
    projector.tile_embedding.weight.data[4] = 1.0
    assert torch.equal(projector.mark_tiles(features, tile_ids), features + torch.tensor([0.0, 1.0])[:, None, None])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_where_a_token_lies_counts(kind):
    projector, features, places = kind(6, 12), torch.randn(9, 6), torch.rand(9, 2)
    more = [LENGTHS] if isinstance(projector, PerceiverResampler) else []
    assert not torch.allclose(projector(features, places, *more), projector(features, places.flip(0), *more))


def test_no_two_places_of_a_large_grid_are_embedded_alike():
    embedded = PlaceEmbedding(64)(grid_places(40, 30)).detach()
    apart = torch.cdist(embedded, embedded) + torch.eye(1200)
    assert apart.min() > 0.1


def test_places_are_embedded_alike_where_training_creates_bfloat16(request):
    embedding = PlaceEmbedding(64)
    expected = embedding(grid_places(40, 30))
    request.getfixturevalue("bfloat16_by_default")
    torch.testing.assert_close(embedding(grid_places(40, 30)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dim", [3, 4, 6, 8, 197])
def test_a_token_without_a_place_gets_zeros_and_any_width_is_embedded(dim):
    embedded = PlaceEmbedding(dim)(grid_places(2, 2, prefix_tokens=1))
    assert embedded.shape == (5, dim)
    assert not embedded[0].any() and embedded[1:].any(-1).all()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_images_without_tiles_cost_no_places(kind):
    assert not any("tile" in name for name in kind(6, 12).state_dict())
