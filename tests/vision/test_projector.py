import pytest
import torch
from torch.nn import functional as F

from vision.projector import MLPProjector


def test_it_is_two_linear_layers_with_a_gelu_between_and_norms_around():
    projector = MLPProjector(6, 10)
    features = torch.randn(2, 3, 6)
    hidden = F.linear(F.layer_norm(features, (6,)), projector.fc1.weight, projector.fc1.bias)
    expected = F.layer_norm(F.linear(F.gelu(hidden), projector.fc2.weight, projector.fc2.bias), (10,))
    torch.testing.assert_close(projector(features), expected)


def test_tokens_do_not_mix():
    projector = MLPProjector(6, 10)
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


def test_its_dtype_is_that_of_its_weights():
    assert MLPProjector(6, 10).to(torch.bfloat16).dtype == torch.bfloat16
