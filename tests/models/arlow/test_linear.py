import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from arlow_vl.models.arlow import linear
from arlow_vl.models.arlow.linear import ArlowLinear, choose_product, product, takes_onednn, turns

sizes = st.integers(1, 40)
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(params=["torch", "turned", pytest.param("onednn", marks=needs_onednn)], autouse=True)
def kernel(request, monkeypatch):
    """Every kernel on every processor, whichever it would choose."""
    monkeypatch.setattr(linear, "_prefers_onednn", lambda: request.param == "onednn")
    monkeypatch.setattr(linear, "_turns_few_rows", lambda: request.param == "turned")
    return request.param


@pytest.fixture
def without_onednn():
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def twins(in_features: int, out_features: int, bias: bool) -> tuple[ArlowLinear, nn.Linear]:
    ours, reference = (cls(in_features, out_features, bias=bias) for cls in (ArlowLinear, nn.Linear))
    reference.load_state_dict(ours.state_dict())
    return ours, reference.double()


@given(rows=st.lists(sizes, min_size=1, max_size=3), in_features=sizes, out_features=sizes, bias=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_and_gradients_equal_those_of_a_float64_linear(rows, in_features, out_features, bias):
    ours, reference = twins(in_features, out_features, bias)
    states = torch.randn(*rows, in_features, requires_grad=True)
    states64 = states.detach().double().requires_grad_()
    grad = torch.randn(*rows, out_features)
    with torch.no_grad():
        torch.testing.assert_close(ours(states).double(), reference(states64), rtol=1e-5, atol=1e-4)
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
    ("dtype", "device", "vendor", "instructions", "has_onednn", "kernel", "because"),
    [
        (torch.float32, "cpu", "AuthenticAMD", "AVX512", True, "onednn", "oneDNN runs them on AMD"),
        (torch.float32, "cpu", "AuthenticAMD", "AVX2", True, "torch", "AVX2 here"),
        (torch.float32, "cpu", "GenuineIntel", "AVX512", True, "torch", "GenuineIntel"),
        (torch.float32, "cpu", "GenuineIntel", "AVX2", True, "torch", "GenuineIntel"),
        (torch.float32, "cpu", "", "DEFAULT", True, "torch", "unknown"),
        (torch.float32, "cpu", "AuthenticAMD", "AVX512", False, "torch", "without oneDNN"),
        (torch.bfloat16, "cpu", "AuthenticAMD", "AVX512", True, "torch", "bfloat16"),
        (torch.float64, "cpu", "AuthenticAMD", "AVX512", True, "torch", "float64"),
        (torch.float32, "cuda", "AuthenticAMD", "AVX512", True, "torch", "cuda"),
    ],
)
def test_the_processor_decides_which_kernel_multiplies(
    dtype, device, vendor, instructions, has_onednn, kernel, because
):
    choice = choose_product(dtype, device, vendor=vendor, instructions=instructions, has_onednn=has_onednn)
    assert choice.kernel == kernel and because in choice.reason


@pytest.mark.parametrize(("instructions", "is_turned"), [("AVX512", False), ("AVX2", True), ("DEFAULT", False)])
def test_few_rows_are_turned_where_mkl_was_measured_so(instructions, is_turned):
    assert (
        choose_product(torch.float32, "cpu", vendor="AuthenticAMD", instructions=instructions).turns_few_rows
        is is_turned
    )
    assert not choose_product(torch.float32, "cpu", vendor="GenuineIntel", instructions=instructions).turns_few_rows


@pytest.mark.parametrize(
    ("outputs", "inputs", "turned"),
    [(64, 32, range(2, 9)), (32, 64, range(2, 9)), (600, 1000, range(2, 5)), (2048, 1024, range(2, 9)), (8, 64, ())],
)
@torch.no_grad()
def test_two_to_eight_rows_are_turned_where_that_pays(kernel, outputs, inputs, turned):
    weight = torch.randn(outputs, inputs)
    found = [rows for rows in range(14) if turns(torch.randn(1, rows, inputs), weight)]
    assert found == (list(turned) if kernel == "turned" else [])


def test_what_follows_a_gradient_or_looks_at_operations_is_not_turned():
    states, weight = torch.randn(4, 8), torch.randn(8, 8)
    assert not turns(states, weight)
    with torch.no_grad():
        assert not torch.func.vmap(lambda row: torch.tensor(turns(row, weight)))(states[:, None].expand(4, 4, 8)).any()
        assert not turns(states.double(), weight.double())
        assert not turns(states, weight.t())
        with torch.autocast("cpu", torch.bfloat16):
            assert not turns(states, weight)


@torch.no_grad()
def test_a_turned_product_lies_in_memory_as_any_other(kernel):
    written = ArlowLinear(16, 48)(torch.randn(4, 1, 16))
    assert written.shape == (4, 1, 48) and written.is_contiguous()


def test_only_float32_on_a_cpu_takes_onednn(kernel):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        states, weight = torch.randn(2, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype)
        assert takes_onednn(states, weight) is (dtype == torch.float32 and kernel == "onednn")
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


def fx_gradient(layer, states, **settings):
    """The gradient of a recorded graph."""
    graph, leaf = make_fx(layer, **settings)(states), states.clone().requires_grad_()
    return torch.autograd.grad(graph(leaf).square().sum(), leaf)


def dual_tangent(layer, states):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(states, torch.ones_like(states)))).tangent


def second_derivative(layer, states):
    leaf = states.clone().requires_grad_()
    (grad,) = torch.autograd.grad(layer(leaf).pow(3).sum(), leaf, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), leaf)


def batched_gradients(layer, states):
    leaf = states.clone().requires_grad_()
    out = layer(leaf)
    return torch.autograd.grad(out, leaf, torch.eye(out.numel()).view(-1, *out.shape), is_grads_batched=True)


def operations(layer, states):
    with FlopCounterMode(display=False) as counter:
        layer(states)
    return torch.tensor(counter.get_total_flops())


def in_eager_compile(function):
    def call(layer, states):
        torch._dynamo.reset()
        return torch.compile(lambda x: function(layer, x), backend="aot_eager")(states)

    return call


def jvp(layer, states):
    return torch.func.jvp(layer, (states,), (torch.ones_like(states),))


OBSERVERS = {
    "jvp": jvp,
    "vmap": lambda layer, states: torch.func.vmap(layer)(states),
    "grad": lambda layer, states: torch.func.grad(lambda x: layer(x).square().sum())(states),
    "jacfwd": lambda layer, states: torch.func.jacfwd(layer)(states),
    "jacrev": lambda layer, states: torch.func.jacrev(layer)(states),
    "hessian": lambda layer, states: torch.func.hessian(lambda x: layer(x).square().sum())(states),
    "forward mode": dual_tangent,
    "second derivative": second_derivative,
    "batched gradients": batched_gradients,
    "make_fx": fx_gradient,
    "make_fx before dispatch": lambda layer, states: fx_gradient(layer, states, pre_dispatch=True),
    "vmap over weights": lambda layer, states: torch.func.vmap(
        lambda weight: torch.func.functional_call(layer, {"weight": weight}, (states,))
    )(torch.stack([layer.weight.detach(), 2 * layer.weight.detach()])),
    "functional_call": lambda layer, states: torch.func.functional_call(
        layer, {"weight": 2 * layer.weight.detach()}, (states,)
    ),
    "a counter of operations": operations,
    "compiled jvp": in_eager_compile(jvp),
}


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_whoever_looks_at_the_operations_sees_those_of_a_plain_linear(observer, frozen):
    ours, reference = (cls(8, 6) for cls in (ArlowLinear, nn.Linear))
    reference.load_state_dict(ours.state_dict())
    for layer in (ours, reference):
        layer.requires_grad_(not frozen)
    states = torch.randn(3, 8)
    seen, expected = (OBSERVERS[observer](layer, states) for layer in (ours, reference))
    torch.testing.assert_close(seen, expected)  # the jvp of a frozen layer was zero


def test_one_vector_is_one_row():
    ours, reference = twins(300, 300, bias=True)
    states = torch.randn(300, requires_grad=True)
    ours(states).sum().backward()
    torch.testing.assert_close(states.grad.double(), reference.weight.sum(0), rtol=1e-4, atol=1e-4)


def test_a_product_that_autograd_follows_has_a_gradient():
    left, right = torch.randn(3, 8, requires_grad=True), torch.randn(6, 8)
    assert product(left, right).requires_grad
    with torch.no_grad():
        assert not product(left, right).requires_grad


def test_no_rows_give_no_rows_and_gradients_of_zero():
    layer = ArlowLinear(4, 3)
    states = torch.zeros(0, 4, requires_grad=True)
    layer(states).sum().backward()
    assert not layer.weight.grad.any() and states.grad.shape == (0, 4)
