"""The dtype gate: a table for the decision, a spy for what really runs, parity for the result."""

import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from arlow_vl.models.arlow import attention
from arlow_vl.models.arlow.attention import KernelChoice, TextRuns, choose_kernel, varlen_attention
from arlow_vl.models.arlow.documents import document_ids
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from tests.conftest import open_gates

DECISIONS = [
    (torch.bfloat16, "cuda", 64, {}, "varlen"),
    (torch.float16, "cuda", 192, {}, "varlen"),
    (torch.float16, "cuda", 256, {"provider": "flash_attn"}, "varlen"),
    (torch.float32, "cuda", 64, {}, "sdpa"),
    (torch.float64, "cuda", 64, {}, "sdpa"),
    (torch.bfloat16, "cpu", 64, {}, "sdpa"),
    (torch.float32, "cpu", 64, {}, "sdpa"),
    (torch.bfloat16, "cuda", 264, {}, "sdpa"),
    (torch.bfloat16, "cuda", 100, {}, "sdpa"),
    (torch.bfloat16, "cuda", 64, {"provider": None}, "sdpa"),
    (torch.bfloat16, "cuda", 64, {"dropout": 0.1}, "sdpa"),
]


@pytest.mark.parametrize(("dtype", "device", "head_dim", "settings", "kernel"), DECISIONS)
def test_only_half_precision_on_cuda_takes_the_varlen_kernel(dtype, device, head_dim, settings, kernel):
    choice = choose_kernel(dtype, device, head_dim, **settings)
    assert choice.kernel == kernel
    assert choice.reason


def test_autocast_decides_by_the_dtype_that_it_computes_in():
    weights = torch.zeros(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention.compute_dtype(weights) == torch.bfloat16
    assert attention.compute_dtype(weights) == torch.float32


def reference_varlen(query, key, value, *, query_runs, key_runs, scaling, is_causal):
    """The varlen contract in plain mathematics, one run after another."""
    output = torch.empty_like(query)
    groups = query.shape[1] // key.shape[1]
    for r in range(len(query_runs)):
        q0, q1 = query_runs.cu_seqlens[r : r + 2]
        k0, k1 = key_runs.cu_seqlens[r : r + 2]
        q, k, v = query[q0:q1], *(x[k0:k1].repeat_interleave(groups, dim=1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scaling
        if is_causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
        output[q0:q1] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return output


@pytest.fixture
def varlen_calls(open_model, monkeypatch):
    """Opens the gate on this machine, with the reference above as the kernel; lists the calls."""
    from arlow_vl.models.arlow import layers_arlow

    calls = []

    def kernel(*args, **kwargs):
        calls.append(kwargs["is_causal"])
        return reference_varlen(*args, **kwargs)

    open_model.set_attn_implementation("arlow")
    monkeypatch.setattr(attention, "kernel_for", lambda *_: KernelChoice("varlen", "test"))
    for module in (attention, layers_arlow):
        monkeypatch.setattr(module, "varlen_attention", kernel)
    return calls


def batch_with_images():
    input_ids = torch.randint(20, 300, (3, 10))
    input_ids[0, 2] = input_ids[1, 3] = input_ids[1, 4] = 7
    mask = torch.ones(3, 10, dtype=torch.long)
    mask[0, :2], mask[2, 7:] = 0, 0
    return {"input_ids": input_ids, "attention_mask": mask, "encoder_hidden_states": torch.randn(3, 5, 64)}


def test_float32_on_cpu_never_enters_the_varlen_kernel(open_model, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("varlen kernel called")

    monkeypatch.setattr(attention, "_varlen_kernel", refuse)
    open_model(**batch_with_images())


def test_an_open_gate_sends_self_and_cross_attention_to_the_varlen_kernel(open_model, varlen_calls):
    open_model(**batch_with_images())
    assert varlen_calls.count(True) == 4
    assert varlen_calls.count(False) == len(open_model.config.cross_attention_layers)


def test_varlen_and_sdpa_agree_on_a_padded_batch_with_images(open_model, varlen_calls):
    inputs = batch_with_images()
    varlen = open_model(**inputs).logits
    open_model.set_attn_implementation("sdpa")
    text = inputs["attention_mask"].bool()
    torch.testing.assert_close(varlen[text], open_model(**inputs).logits[text])


def test_varlen_and_sdpa_agree_on_packed_documents(open_model, varlen_calls):
    input_ids, positions = torch.randint(20, 300, (1, 9)), torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 4]])
    varlen = open_model(input_ids, position_ids=positions, use_cache=False).logits
    open_model.set_attn_implementation("sdpa")
    torch.testing.assert_close(varlen, open_model(input_ids, position_ids=positions, use_cache=False).logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_implementation_agrees_with_the_gated_default(open_model, implementation):
    inputs = batch_with_images()
    text = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = open_model(**inputs).logits
        open_model.set_attn_implementation(implementation)
        torch.testing.assert_close(open_model(**inputs).logits[text], expected[text])


FLEX = """
import torch
import torch.nn.functional as F
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
torch.manual_seed(0)
model = ArlowForCausalLM(ArlowConfig(vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, cross_attention_interval=2)).eval()
for name, parameter in model.named_parameters():
    parameter.data = torch.full_like(parameter, 0.7) if name.endswith("_gate") else parameter.data
input_ids = torch.randint(20, 300, (2, 10))
input_ids[0, 2] = input_ids[1, 4] = 7
inputs = {"input_ids": input_ids, "encoder_hidden_states": torch.randn(2, 5, 64), "use_cache": False}
with torch.no_grad():
    expected = model(**inputs).logits
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(**inputs).logits, expected)
"""


def flex_is_unsafe() -> bool:
    try:
        attention.refuse_unsafe_flex("flex_attention", "cpu", torch.__version__)
    except ValueError:
        return True
    return False


@pytest.mark.slow  # compiles kernels for a minute
@pytest.mark.skipif(flex_is_unsafe(), reason="this torch runs flex kernels compiled for another number of CPU threads")
def test_flex_attention_agrees_with_the_gated_default():
    """In a process of its own: the shape checks of this one do not go through torch's compiler, which flex needs."""
    subprocess.run([sys.executable, "-c", FLEX], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("implementation", "device", "version", "refused"),
    [
        ("flex_attention", "cpu", "2.11.0+cu130", True),
        ("flex_attention", "cpu", "2.12.1", True),
        ("flex_attention", "cpu", "2.13.0a0+git1234567", False),
        ("flex_attention", "cpu", "3.0.0", False),
        ("flex_attention", "cuda", "2.11.0+cu130", False),
        ("sdpa", "cpu", "2.11.0+cu130", False),
        (None, "cpu", "2.11.0+cu130", False),
    ],
)
def test_flex_attention_on_a_cpu_waits_for_the_torch_that_compiles_it_for_each_number_of_threads(
    implementation, device, version, refused
):
    if not refused:
        attention.refuse_unsafe_flex(implementation, device, version)
        return
    with pytest.raises(ValueError, match=rf"^flex_attention on a CPU needs torch 2.13, this is {re.escape(version)}: "):
        attention.refuse_unsafe_flex(implementation, device, version)


def test_a_call_with_an_unsafe_flex_kernel_ends_in_a_sentence(open_model, monkeypatch):
    monkeypatch.setattr(attention, "FLEX_FITS_THREADS", (99, 0))  # as if this torch were too old
    open_model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="set attn_implementation to 'sdpa'"):
        open_model(torch.randint(20, 300, (1, 6)))


def test_grouped_heads_equal_repeated_key_value_heads(small_config):
    grouped = ArlowForCausalLM(small_config).eval()
    config = type(small_config).from_dict(small_config.to_dict() | {"num_key_value_heads": 4})
    full = ArlowForCausalLM(config).eval()
    state = grouped.state_dict()
    for key in state:
        if key.endswith(("k_proj.weight", "v_proj.weight")):
            state[key] = state[key].unflatten(0, (2, 16)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    input_ids = torch.randint(20, 300, (2, 8))
    torch.testing.assert_close(full(input_ids).logits, grouped(input_ids).logits)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_the_varlen_kernel_agrees_with_float64(dtype, head_dim):
    documents = document_ids(torch.tensor([[0, 1, 2, 3, 0, 1, 0, 0, 1, 2]]))
    runs = TextRuns.of_documents(documents).runs
    on_device = type(runs)(runs.cu_seqlens.cuda(), runs.max_seqlen)
    query, key, value = (
        torch.randn(10, 8, head_dim),
        torch.randn(10, 2, head_dim),
        torch.randn(10, 2, head_dim),
    )
    settings = {"scaling": head_dim**-0.5, "is_causal": True}
    half = [x.cuda().to(dtype) for x in (query, key, value)]
    result = varlen_attention(*half, query_runs=on_device, key_runs=on_device, **settings)
    expected = reference_varlen(*(x.double().cpu() for x in half), query_runs=runs, key_runs=runs, **settings)
    # two roundings to a format of 8 (bf16) or 11 (fp16) significant bits
    torch.testing.assert_close(result.double().cpu(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.gpu
def test_a_bf16_model_on_cuda_agrees_with_itself_on_sdpa(small_config):
    model = ArlowForCausalLM(small_config).eval().cuda().bfloat16()
    open_gates(model)
    inputs = {key: value.cuda() for key, value in batch_with_images().items()}
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].bfloat16()
    text = inputs["attention_mask"].bool()
    varlen = model(**inputs).logits[text].float()
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(varlen, model(**inputs).logits[text].float(), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize(
    ("keys", "is_trained", "computed_in"),
    [(16, True, torch.float32), (16, False, torch.bfloat16), (257, True, torch.bfloat16)],
)
def test_gradients_of_short_attention_in_bfloat16_are_computed_in_float32_on_a_cpu(
    keys, is_trained, computed_in, is_autocast, monkeypatch
):
    """There they are several times as fast, and exact but for the rounding of what comes in and goes out."""
    torch.manual_seed(0)
    dtype = torch.float32 if is_autocast else torch.bfloat16
    query, key, value = (torch.randn(2, heads, keys, 8).bfloat16().to(dtype) for heads in (4, 2, 2))
    query.requires_grad_(is_trained)
    kernel, seen = F.scaled_dot_product_attention, []

    def watched(query, *args, **settings):
        seen.append(attention.compute_dtype(query))
        return kernel(query, *args, **settings)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watched)
    module = torch.nn.Module()
    module.is_causal = True
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        attended, _ = attention.arlow_attention_forward(module, query, key, value, None)
    assert seen == [computed_in]
    assert attended.dtype == torch.bfloat16
    if is_trained:
        attended.float().square().sum().backward()
        exact = query.detach().double().requires_grad_()
        monkeypatch.undo()
        expected, _ = attention.arlow_attention_forward(module, exact, key.double(), value.double(), None)
        expected.square().sum().backward()
        torch.testing.assert_close(
            query.grad.double(), exact.grad, rtol=0.03, atol=0.03 * float(exact.grad.abs().max())
        )
