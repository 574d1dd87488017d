# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Linear layers whose float32 products run on oneDNN where the machine is a CPU.

PyTorch hands float32 products to MKL, which keeps its AVX-512 kernels for Intel processors; oneDNN, in every x86 build
of PyTorch, has them for all. On an AMD EPYC the three products of a training step and the one of a decode step take
about half the time (`experiments/benchmarks/results/decoder.md`). Everything else goes the way of `nn.Linear`.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HAS_ONEDNN = torch.backends.mkldnn.is_available()
SMALL = 2**16
"""Entries of a matrix below which one row's product costs less than oneDNN's call."""


def _operator(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


# The compiler takes oneDNN's own operator for constant weights only: it is given this one, which it does not look into.
# A checkpoint that ships this file brings a second copy of it into the process; the operator is the first one's.
if not hasattr(torch.ops.arlow, "linear_product"):
    _LIBRARY = torch.library.Library("arlow", "FRAGMENT")
    _LIBRARY.define("linear_product(Tensor left, Tensor right, Tensor? bias) -> Tensor")
    _LIBRARY.impl("linear_product", _operator, "CPU")
    _LIBRARY.impl("linear_product", lambda left, right, bias: left.new_empty(*left.shape[:-1], right.shape[0]), "Meta")


def takes_onednn(left: Tensor, right: Tensor) -> bool:
    """Float32 on a CPU, outside autocast. Not one row times a small matrix; nor no rows, which oneDNN refuses."""
    return (
        left.dtype == right.dtype == torch.float32
        and left.is_cpu
        and (right.numel() >= SMALL or left.numel() > left.shape[-1])
        and HAS_ONEDNN
        and (torch.compiler.is_compiling() or (bool(torch.backends.mkldnn.enabled) and left.numel() > 0))
        and not torch.is_autocast_enabled("cpu")
    )


def onednn_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """`product` where `takes_onednn` holds."""
    return (torch.ops.arlow.linear_product if torch.compiler.is_compiling() else _operator)(left, right, bias)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left (..., K) times right (N, K) transposed, without a gradient. Any strides: a transpose costs no copy."""
    return onednn_product(left, right) if takes_onednn(left, right) else nn.functional.linear(left, right)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        return onednn_product(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        grad = grad.flatten(0, -2)
        return (
            onednn_product(grad, weight.t()).view_as(states) if needs_states else None,
            onednn_product(grad.t(), states.flatten(0, -2).t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class ArlowLinear(nn.Linear):
    """`nn.Linear`, on the faster kernel where there is one: same parameters, same results but for rounding."""

    def forward(self, input: Tensor) -> Tensor:
        operands = _, weight, _ = input, self.weight, self.bias
        # A quantised or a sharded weight is a tensor of another type and brings kernels of its own.
        if type(weight) is not nn.Parameter or not takes_onednn(input, weight):
            return nn.functional.linear(*operands)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands):
            return _OneDnnLinear.apply(*operands)
        return onednn_product(*operands)


def make_plain(model: nn.Module) -> None:
    """Every `ArlowLinear` in `model` becomes the `nn.Linear` that it extends; parameters stay where they are."""
    for module in model.modules():
        if type(module) is ArlowLinear:
            module.__class__ = nn.Linear  # pyrefly: ignore[bad-argument-type]
