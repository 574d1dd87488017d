import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from arlow_vl.models.arlow.linear import HAS_ONEDNN, ArlowLinear, takes_onednn

sizes = st.integers(1, 40)


@pytest.fixture
def without_onednn():
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def twins(in_features: int, out_features: int, bias: bool) -> tuple[ArlowLinear, nn.Linear]:
    ours, reference = (cls(in_features, out_features, bias=bias) for cls in (ArlowLinear, nn.Linear))
    reference.load_state_dict(ours.state_dict())
    return ours, reference.double()


@given(rows=st.lists(sizes, min_size=1, max_size=3), in_features=sizes, out_features=sizes, bias=st.booleans())
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_equal_those_of_a_float64_linear(rows, in_features, out_features, bias):
    ours, reference = twins(in_features, out_features, bias)
    states = torch.randn(*rows, in_features, requires_grad=True)
    states64 = states.detach().double().requires_grad_()
    grad = torch.randn(*rows, out_features)
    ours(states).backward(grad)
    reference(states64).backward(grad.double())
    # float32 sums of up to 64,000 products
    torch.testing.assert_close(ours(states).double(), reference(states64), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(states.grad.double(), states64.grad, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("layout", ["a transpose", "every second row", "expanded"])
def test_any_strides_of_states_and_gradient_work(layout):
    ours, reference = twins(8, 6, bias=False)
    make = {
        "a transpose": lambda *shape: torch.randn(*reversed(shape)).t(),
        "every second row": lambda *shape: torch.randn(2 * shape[0], shape[1])[::2],
        "expanded": lambda *shape: torch.randn(1, shape[1]).expand(shape),
    }[layout]
    states, grad = make(10, 8).requires_grad_(), make(10, 6)
    states64 = states.detach().double().requires_grad_()
    ours(states).backward(grad)
    reference(states64).backward(grad.double())
    torch.testing.assert_close(states.grad.double(), states64.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad.double(), reference.weight.grad, rtol=1e-5, atol=1e-5)


def test_only_what_asks_for_a_gradient_gets_one():
    ours, _ = twins(8, 6, bias=True)
    ours.weight.requires_grad_(False)
    states = torch.randn(3, 8)
    ours(states).sum().backward()
    assert ours.weight.grad is None and torch.equal(ours.bias.grad, torch.full((6,), 3.0))
    with torch.no_grad():
        assert not ours(states).requires_grad


@pytest.mark.parametrize(
    ("dtype", "takes"), [(torch.float32, HAS_ONEDNN), (torch.float64, False), (torch.bfloat16, False)]
)
def test_float32_on_a_cpu_takes_onednn(dtype, takes):
    states, weight = torch.randn(2, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype)
    assert takes_onednn(states, weight) is takes
    assert not takes_onednn(states.to("meta"), weight.to("meta"))


def test_autocast_decides_the_dtype_as_for_any_linear():
    ours, _ = twins(8, 6, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(torch.randn(2, 8)).dtype == torch.bfloat16


def test_torchs_switch_for_onednn_is_heard(without_onednn):
    ours, _ = twins(8, 6, bias=True)
    states = torch.randn(5, 8)
    assert torch.equal(ours(states), nn.functional.linear(states, ours.weight, ours.bias))


def test_a_weight_of_another_tensor_type_keeps_its_own_kernels():
    """Quantised and sharded weights are such types."""

    class Sharded(torch.Tensor):
        calls = 0

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.calls += func is nn.functional.linear
            return super().__torch_function__(func, types, args, kwargs or {})

    ours, _ = twins(8, 6, bias=False)
    ours.weight = nn.Parameter(torch.randn(6, 8).as_subclass(Sharded))
    ours(torch.randn(5, 8))
    assert Sharded.calls == 1


def test_a_second_derivative_is_refused_not_wrong():
    ours, _ = twins(3, 2, bias=False)
    states = torch.randn(4, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(ours(states).square().sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_no_rows_give_no_rows_and_gradients_of_zero():
    layer = ArlowLinear(4, 3)
    states = torch.zeros(0, 4, requires_grad=True)
    layer(states).sum().backward()
    assert not layer.weight.grad.any() and states.grad.shape == (0, 4)
