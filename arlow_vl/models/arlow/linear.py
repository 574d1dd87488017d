# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Linear layers whose float32 products run on the faster of the two kernels that PyTorch brings for processors.

PyTorch hands float32 products to MKL, which keeps its AVX-512 kernels for Intel processors; oneDNN, in every x86 build
of PyTorch, has them for all. Measured, oneDNN's speed over MKL's:

    processor             forward        gradient of the weight    one row
    AMD with AVX-512      about 2        about 2                   1.5
    AMD with AVX2         0.9 to 1.2     0.7 to 0.8                0.4 to 0.9
    Intel with AVX-512    0.87 to 0.98   0.71 to 0.88              0.70

So the first kind of processor takes oneDNN (`choose_product`); everything else runs as `nn.Linear` does.

On AMD with AVX2, MKL multiplies two to eight rows faster as the right factor: W x^T instead of x W^T, one thread,
weights from memory, times the speed (a decoding step of as many texts is such products):

    W          2 rows    4 rows    8 rows    12 rows
    2048 x 384    1.8       1.8       1.4       0.75
    8192 x 384    2.0       2.4       1.3       0.9
    4096 x 1024   1.3       1.6       1.0       0.75
    384 x 384     1.4       1.8       1.3       0.8
    1024 x 1024   1.1       1.1       0.8       0.65
    384 x 2048    0.9       1.0       0.75      0.6
    128 x 384     1.4       1.5       1.2       0.7

So there up to eight rows go that way (`turns`), where the weight is twice as high as it is wide or the rows are small.

How a product is rounded depends on where in memory its weight begins, too: `align_weights`.
"""

import functools
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.autograd import forward_ad

PLAIN = (Tensor, nn.Parameter)
"""Types without kernels of their own, unlike quantised, sharded and fake tensors."""
SMALL = 2**16
"""Entries of a matrix below which one row's product costs less than oneDNN's call."""
ALIGNMENT = 64
"""Bytes: every tensor that torch makes on a CPU begins at a multiple of it."""


@dataclass(frozen=True)
class ProductChoice:
    kernel: Literal["onednn", "torch"]
    reason: str
    turns_few_rows: bool = False
    """True: a few rows are multiplied as the right factor."""


def choose_product(
    dtype: torch.dtype, device_type: str, *, vendor: str, instructions: str, has_onednn: bool = True
) -> ProductChoice:
    """Picks the kernel of a product. `vendor` is as the processor names itself, `instructions` as torch calls them."""
    if device_type != "cpu":
        return ProductChoice("torch", f"torch's own kernels are the fast ones on {device_type}")
    if dtype != torch.float32:
        return ProductChoice("torch", f"torch finds the kernel for {dtype} by itself")
    if not has_onednn:
        return ProductChoice("torch", "this torch was built without oneDNN")
    if vendor != "AuthenticAMD":
        return ProductChoice("torch", f"MKL was measured the faster on Intel; vendor here: {vendor or 'unknown'}")
    if instructions != "AVX512":
        few = ", where a few rows are multiplied from the right" if instructions == "AVX2" else ""
        reason = f"MKL was measured the faster on AMD without AVX-512; {instructions} here{few}"
        return ProductChoice("torch", reason, turns_few_rows=instructions == "AVX2")
    return ProductChoice("onednn", "MKL keeps its AVX-512 kernels for Intel, oneDNN runs them on AMD")


@functools.cache
def cpu_vendor() -> str:
    """The processor's vendor in its own spelling, "AuthenticAMD" or "GenuineIntel"; "" where it is not known."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        with path.open() as lines:
            return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")
    return platform.processor().rpartition(", ")[2]  # Windows: "AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD"


@functools.cache
def product_for(dtype: torch.dtype, device_type: str) -> ProductChoice:
    """`choose_product` with what this machine has."""
    return choose_product(
        dtype,
        device_type,
        vendor=cpu_vendor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        has_onednn=torch.backends.mkldnn.is_available(),
    )


@torch.compiler.assume_constant_result  # evaluated once while compiling, not traced
def _prefers_onednn() -> bool:
    return product_for(torch.float32, "cpu").kernel == "onednn"


def _operator(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


# The compiler takes oneDNN's own operator for constant weights only, so it is given this one, which it does not trace.
# A checkpoint that ships this file brings a second copy of it into the process; the operator is the first one's.
if not hasattr(torch.ops.arlow, "linear_product"):
    _LIBRARY = torch.library.Library("arlow", "FRAGMENT")
    _LIBRARY.define("linear_product(Tensor left, Tensor right, Tensor? bias) -> Tensor")
    _LIBRARY.impl("linear_product", _operator, "CPU")
    _LIBRARY.impl("linear_product", lambda left, right, bias: left.new_empty(*left.shape[:-1], right.shape[0]), "Meta")


def is_transformed() -> bool:
    """True inside torch.func (jvp, vmap, grad, hessian), or with forward-mode derivatives."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _is_observed() -> bool:
    """True where operations are differentiated by torch.func, recorded or counted.

    All these know torch's own operations alone. Through oneDNN's a jvp would be zero, a recorded graph would have no
    gradient, and its floating-point operations would not be counted.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting() or is_transformed()
    modes = torch._C._len_torch_dispatch_stack() + _len_torch_dispatch_stack_pre_dispatch()
    return modes > 0 or is_transformed() or torch.jit.is_tracing()


def takes_onednn(left: Tensor, right: Tensor) -> bool:
    """True for float32 on a CPU that prefers oneDNN, outside autocast and unobserved.

    False for one row times a small matrix, and for no rows, which oneDNN refuses.
    """
    return (
        _prefers_onednn()
        and type(left) in PLAIN
        and type(right) in PLAIN
        and left.dtype == right.dtype == torch.float32
        and left.is_cpu
        and (right.numel() >= SMALL or left.numel() > left.shape[-1])
        and (torch.compiler.is_compiling() or (bool(torch.backends.mkldnn.enabled) and left.numel() > 0))
        and not torch.is_autocast_enabled("cpu")
        and not _is_observed()
    )


def onednn_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """The `product` on oneDNN, where `takes_onednn` holds."""
    return (torch.ops.arlow.linear_product if torch.compiler.is_compiling() else _operator)(left, right, bias)


def turns(left: Tensor, right: Tensor) -> bool:
    """True for a product of a few rows, without gradients, on a CPU that is faster with them as the right factor."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not _turns_few_rows():
        return False
    outputs, inputs = right.shape
    is_small = left.numel() <= 4096 and 3 * outputs >= inputs  # the rows stay in the first cache
    return (
        inputs < left.numel() <= 8 * inputs
        and (is_small or outputs >= 2 * inputs)
        and type(left) in PLAIN
        and type(right) in PLAIN
        and left.dtype == right.dtype == torch.float32
        and left.is_cpu
        and right.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
    )


@functools.cache
def _turns_few_rows() -> bool:
    return product_for(torch.float32, "cpu").turns_few_rows


def turned_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """The `product` with the rows as the right factor, where `turns` holds."""
    rows = left.reshape(-1, left.shape[-1])
    turned = torch.mm(right, rows.t()) if bias is None else torch.addmm(bias[:, None], right, rows.t())
    return turned.t().contiguous().view(*left.shape[:-1], right.shape[0])


def product(left: Tensor, right: Tensor) -> Tensor:
    """left (..., K) times right (N, K) transposed. Any strides: a transpose costs no copy.

    Inside a backward that is itself differentiated (`create_graph=True`) autograd records it.
    """
    is_followed = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    if is_followed or not takes_onednn(left, right):
        return nn.functional.linear(left, right)
    return onednn_product(left, right)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left (M, K) times right (N, K) transposed to `total` (M, N), where no gradient is recorded.

    torch's own kernel adds while it multiplies; a separate product would be written and read once more.
    """
    if takes_onednn(left, right):
        total += onednn_product(left, right)
    else:
        torch.addmm(total, left, right.t(), out=total)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        return onednn_product(states, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        grad, rows = (x.reshape(-1, x.shape[-1]) for x in (grad, states))
        return (
            product(grad, weight.t()).view_as(states) if needs_states else None,
            product(grad.t(), rows.t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class ArlowLinear(nn.Linear):
    """`nn.Linear`, on the faster kernel where there is one: same parameters, same results but for rounding."""

    def forward(self, input: Tensor) -> Tensor:
        operands = input, self.weight, self.bias
        if turns(input, self.weight):
            return turned_product(*operands)
        if not takes_onednn(input, self.weight):
            return nn.functional.linear(*operands)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands):
            return _OneDnnLinear.apply(*operands)
        return onednn_product(*operands)


def make_plain(model: nn.Module) -> None:
    """Turns every `ArlowLinear` in `model` into the `nn.Linear` that it extends; parameters stay where they are."""
    for module in model.modules():
        if type(module) is ArlowLinear:
            module.__class__ = nn.Linear  # pyrefly: ignore[bad-argument-type]


def align_weights(model: nn.Module) -> None:
    """Moves each weight that begins at an unaligned address to an aligned one, as torch's own tensors have.

    A safetensors file is mapped into memory, and its weights begin wherever the header and the tensors in front of them
    end. MKL's order of summation follows the alignment of its arrays (its guide, "Obtaining Numerically Reproducible
    Results"): that of one row's product differs where a weight begins off a multiple of 16 bytes. So one text model in
    two files, alone or inside a vision-language model, gave logits that differ in their last bits.

    Costs a copy of what is moved, once: 0.5 s for 120 million float32 parameters on an AMD EPYC.
    """
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and parameter.is_cpu and parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
