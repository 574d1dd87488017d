import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from arlow_vl.models.arlow import loss as loss_module
from arlow_vl.models.arlow.loss import linear_cross_entropy, next_token_loss, rows_at_a_time


def case(tokens: int, vocab: int, ignored: float, dtype=torch.float32):
    hidden_states = torch.randn(tokens, 16, dtype=dtype, requires_grad=True)
    weight = nn.Parameter(torch.randn(vocab, 16, dtype=dtype))
    labels = torch.randint(vocab, (tokens,)).masked_fill(torch.rand(tokens) < ignored, -100)
    labels[-1] = 0  # at least one counts
    return hidden_states, weight, labels


def reference(hidden_states, weight, labels, divisor=None):
    """In float64, with all logits."""
    h, w = (x.detach().double().requires_grad_() for x in (hidden_states, weight))
    total = F.cross_entropy(h @ w.t(), labels, reduction="sum")
    loss = total / (divisor or (labels != -100).sum())
    loss.backward()
    return loss, h.grad, w.grad


@given(tokens=st.integers(1, 700), vocab=st.integers(2, 50), ignored=st.sampled_from([0.0, 0.3, 0.95]))
@settings(max_examples=40)
def test_loss_and_gradients_equal_those_of_materialised_logits(tokens, vocab, ignored):
    hidden_states, weight, labels = case(tokens, vocab, ignored)
    loss = linear_cross_entropy(hidden_states, weight, labels)
    loss.backward()
    expected, states_grad, weight_grad = reference(hidden_states, weight, labels)
    # float32 against float64
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden_states.grad.double(), states_grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), weight_grad, rtol=1e-4, atol=1e-5)


def test_a_vocabulary_wider_than_a_slice_is_added_up_in_parts(monkeypatch):
    monkeypatch.setattr(loss_module, "WEIGHT_SLICE", 7)
    hidden_states, weight, labels = case(600, 50, 0.2)
    linear_cross_entropy(hidden_states, weight, labels).backward()
    torch.testing.assert_close(weight.grad.double(), reference(hidden_states, weight, labels)[2], rtol=1e-4, atol=1e-5)


def test_the_sum_is_divided_by_the_number_of_items_of_all_micro_batches():
    hidden_states, weight, labels = case(30, 20, 0.3)
    loss = linear_cross_entropy(hidden_states, weight, labels, num_items_in_batch=torch.tensor(77))
    (3 * loss).backward()
    expected, states_grad, _ = reference(hidden_states, weight, labels, divisor=77)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(hidden_states.grad.double(), 3 * states_grad, rtol=1e-4, atol=1e-6)


def test_a_frozen_head_gets_no_gradient():
    hidden_states, weight, labels = case(30, 20, 0.0)
    linear_cross_entropy(hidden_states, weight.requires_grad_(False), labels).backward()
    assert weight.grad is None and hidden_states.grad is not None


def test_logits_far_apart_give_a_finite_loss():
    hidden_states, weight, labels = torch.full((1, 16), 100.0), torch.eye(16)[:3] * 10, torch.tensor([2])
    weight[0] *= 2
    loss = linear_cross_entropy(hidden_states, weight, labels)
    torch.testing.assert_close(loss, torch.tensor(1000.0))


def test_no_label_that_counts_gives_nan_as_everywhere_in_torch():
    hidden_states, weight, _ = case(4, 20, 0.0)
    assert linear_cross_entropy(hidden_states, weight, torch.full((4,), -100)).isnan()


def test_half_precision_sums_in_float32():
    hidden_states, weight, labels = case(600, 40, 0.1, torch.bfloat16)
    loss = linear_cross_entropy(hidden_states, weight, labels)
    loss.backward()
    expected, states_grad, weight_grad = reference(hidden_states, weight, labels)
    assert loss.dtype == torch.float32 and weight.grad.dtype == torch.bfloat16
    # logits are rounded to bf16's 8 bits before anything else, gradients once more
    torch.testing.assert_close(loss.double(), expected, rtol=5e-3, atol=0)
    torch.testing.assert_close(weight.grad.double(), weight_grad, rtol=0.05, atol=2e-3)
    torch.testing.assert_close(hidden_states.grad.double(), states_grad, rtol=0.05, atol=2e-4)


def errors(hidden_states, weight, labels, scale, loss_of, divisor=None):
    """Relative errors of both gradients of the scaled loss, against float64."""
    _, *exact = reference(hidden_states, weight, labels, divisor)
    leaves = [x.detach().clone().requires_grad_() for x in (hidden_states, weight)]
    (scale * loss_of(*leaves, labels)).backward()
    pairs = zip(leaves, exact, strict=True)
    return [((leaf.grad.double() / scale - true).norm() / true.norm()).item() for leaf, true in pairs]


@pytest.mark.parametrize("scale", [1.0, 3.7, 65536.0])
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_are_as_accurate_as_those_of_materialised_logits(dtype, autocast, scale):
    """Float16's overflowed with the scale of a GradScaler, and without one they were rounded before it came."""
    hidden_states, weight, labels = case(300, 700, 0.3, torch.float32 if autocast else dtype)
    divisor = torch.tensor(5000)

    def materialised(states, weight, labels):
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            logits = F.linear(states, weight)
        return F.cross_entropy(logits.float(), labels, reduction="sum") / divisor

    def ours(*inputs):
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            return linear_cross_entropy(*inputs, divisor)

    inputs = hidden_states, weight, labels, scale
    for mine, plain in zip(errors(*inputs, ours, divisor), errors(*inputs, materialised, divisor), strict=True):
        assert mine < 1.05 * plain


def test_gradients_of_float16_are_rounded_behind_the_scale_of_a_grad_scaler():
    """Before it, those of a mean over ten million labels are zeros in float16, whatever they are multiplied by."""
    hidden_states, weight, labels = case(60, 50, 0.3, torch.float16)
    divisor = torch.tensor(10**7)

    def ours(*inputs):
        return linear_cross_entropy(*inputs, divisor)

    assert max(errors(hidden_states, weight, labels, 65536.0, ours, divisor)) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_retained_loss_goes_backward_again(dtype):
    hidden_states, weight, labels = case(30, 20, 0.0, dtype)
    loss = linear_cross_entropy(hidden_states, weight, labels)
    first = torch.autograd.grad(loss, [hidden_states, weight], retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(2 * loss, [hidden_states, weight])
    for grad, before, twice in zip(first, kept, second, strict=True):
        assert torch.equal(grad, before) and torch.equal(twice, 2 * grad)


def products(run) -> int:
    """How many times the head's product was made."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / (2 * 30 * 16 * 20)


def test_a_loss_without_gradient_makes_one_product_of_three():
    hidden_states, weight, labels = case(30, 20, 0.0)

    def loss():
        return linear_cross_entropy(hidden_states, weight, labels)

    assert products(loss) == 3
    with torch.no_grad():
        assert products(loss) == 1
    with torch.inference_mode():
        assert products(loss) == 1
    weight.requires_grad_(False)
    assert products(loss) == 2
    hidden_states.requires_grad_(False)
    assert products(loss) == 1


def test_the_rows_at_a_time_stay_within_the_memory_and_the_kernels_reach():
    assert [rows_at_a_time(v, "cpu") for v in (300, 8192, 32768, 131072, 10**6)] == [256, 256, 256, 256, 64]
    assert rows_at_a_time(131072, "cuda") == 1024


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_that_skips_logits_has_the_same_loss_and_gradients(small_config, batch):
    from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM

    model = ArlowForCausalLM(small_config)
    ids = torch.randint(10, 300, (batch, 20))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    plain = model(input_ids=ids, labels=labels)
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    lean = model(input_ids=ids, labels=labels, skip_logits=True)
    lean.loss.backward()
    assert lean.logits is None
    torch.testing.assert_close(lean.loss, plain.loss)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def own_forward(head):
    head.forward = lambda states: 2 * F.linear(states, head.weight)


def hook(head):
    head.register_forward_hook(lambda module, inputs, output: 2 * output)


def parametrization(head):
    nn.utils.parametrize.register_parametrization(head, "weight", Doubled())


def pruning(head):
    prune.l1_unstructured(head, "weight", amount=0.5)


@pytest.mark.parametrize("change", [own_forward, hook, parametrization, pruning])
def test_a_head_that_is_more_than_its_weight_is_called(open_model, change):
    ids = torch.randint(10, 300, (1, 8))
    unchanged = open_model(input_ids=ids, labels=ids).loss
    open_model.lm_head.weight = nn.Parameter(open_model.lm_head.weight.detach().clone())  # untied
    change(open_model.lm_head)
    plain = open_model(input_ids=ids, labels=ids).loss
    assert plain != unchanged
    torch.testing.assert_close(open_model(input_ids=ids, labels=ids, skip_logits=True).loss, plain)


def test_the_bias_of_a_head_is_not_forgotten(open_model):
    open_model.lm_head = nn.Linear(64, 300)
    nn.init.normal_(open_model.lm_head.bias)
    ids = torch.randint(10, 300, (1, 8))
    plain, lean = (open_model(input_ids=ids, labels=ids, skip_logits=skips).loss for skips in (False, True))
    torch.testing.assert_close(lean, plain)


def test_an_index_to_ignore_is_heard_without_logits_too(open_model):
    ids = torch.randint(10, 300, (2, 8))
    labels = ids.clone()
    labels[0, :4] = 0
    plain, lean = (
        open_model(input_ids=ids, labels=labels, ignore_index=0, skip_logits=skips).loss for skips in (False, True)
    )
    torch.testing.assert_close(lean, plain)


def test_a_loss_of_the_users_own_is_called_without_logits_too(open_model):
    open_model.loss_function = lambda logits, **kwargs: logits.square().mean()
    ids = torch.randint(10, 300, (1, 8))
    plain, lean = (open_model(input_ids=ids, labels=ids, skip_logits=skips).loss for skips in (False, True))
    assert lean == plain


def test_torch_func_differentiates_a_loss_that_skips_logits(open_model):
    ids = torch.randint(10, 300, (1, 8))
    parameters = dict(open_model.named_parameters())

    def loss(head, skips):
        settings = {"input_ids": ids, "labels": ids, "skip_logits": skips}
        values = parameters | {"lm_head.weight": head}
        return torch.func.functional_call(open_model, values, kwargs=settings, tie_weights=False).loss

    plain, lean = (torch.func.grad(loss)(open_model.lm_head.weight.detach(), skips) for skips in (False, True))
    torch.testing.assert_close(lean, plain)


def test_labels_that_are_shifted_already_are_taken_as_they_are():
    hidden_states, weight, labels = case(6, 20, 0.0)
    head = nn.Linear(16, 20, bias=False)
    head.weight = weight
    shifted = next_token_loss(hidden_states[None], head, None, shift_labels=labels[None])
    torch.testing.assert_close(shifted, linear_cross_entropy(hidden_states, weight, labels))


def test_skipping_logits_without_labels_is_refused(open_model):
    with pytest.raises(ValueError, match="without labels"):
        open_model(input_ids=torch.tensor([[1, 9]]), skip_logits=True)
