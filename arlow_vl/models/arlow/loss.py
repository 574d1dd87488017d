# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Cross-entropy of a language-model head without its logits.

The logits of 1,024 tokens over a vocabulary of 131,072 take half a gigabyte, and a plain loss holds three of them. Here
a few rows exist at a time, and their gradient is made while they do (the idea of arXiv:2410.10989, section 3.2).

Gradients are summed and kept in float32 until backward knows the scale of the loss. Float16 could not hold them: no
scale brings back what it rounds off below 6e-8, and above 65,504 it is infinite.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import logging

from .linear import ArlowLinear, add_product, is_transformed, product

logger = logging.get_logger(__name__)

IGNORED = -100
HALF_DTYPES = (torch.float16, torch.bfloat16)
STEEP = 2.0**15
"""Factor for slopes in half precision: those between -1 and 1 still fit into float16, and keep its digits to 2e-9."""
WEIGHT_SLICE = 16384
"""Rows of the head's weight whose gradient is added up at a time, so that no second gradient of full size exists."""


def rows_at_a_time(vocab_size: int, device_type: str) -> int:
    """Rows of float32 logits to hold at once: few enough for memory (128 MiB, 512 MiB on a GPU), enough for speed."""
    if device_type == "cpu":
        return min(max(2**25 // vocab_size, 64), 256)
    return max(2**27 // vocab_size, 64)


def _add_wide_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds a product as `add_product` does, without rounding sums to half precision."""
    if left.dtype in HALF_DTYPES and left.is_cuda:
        total += torch.mm(left, right.t(), out_dtype=torch.float32)
    else:
        add_product(total, left.to(total.dtype), right.to(total.dtype))


def _loss_and_gradients(
    hidden_states: Tensor, weight: Tensor, labels: Tensor, divisor: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, and its float32 gradients of the hidden states and of the weight where they are needed."""
    wide, is_half = torch.promote_types(weight.dtype, torch.float32), weight.dtype in HALF_DTYPES
    grad_states = torch.zeros_like(hidden_states, dtype=wide) if needs[0] else None
    grad_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
    loss = torch.zeros_like(divisor, dtype=torch.float32) / divisor  # no label at all: NaN, as everywhere in torch
    rows = rows_at_a_time(weight.shape[0], hidden_states.device.type)
    for start in range(0, hidden_states.shape[0], rows):
        chunk = slice(start, start + rows)
        states, targets = hidden_states[chunk], labels[chunk]
        counts = (targets != IGNORED)[:, None]
        targets = targets.clamp(min=0)[:, None]
        share = counts / divisor
        log_probs = product(states, weight).float()
        torch.log_softmax(log_probs, dim=-1, out=log_probs)
        loss -= (log_probs.gather(1, targets) * share).sum()
        if grad_states is None and grad_weight is None:
            continue
        # d loss / d logits, but for the row's share of the loss, which is cheaper to apply to the narrow side.
        slope = log_probs.exp_().scatter_add_(1, targets, log_probs.new_full(targets.shape, -1.0))
        if is_half:
            slope, share = slope.mul_(counts * STEEP), share / STEEP
        del log_probs
        slope = slope.to(weight.dtype)
        # The share may be too small for float16 as well: it is applied to the sum.
        weighted = (states if is_half else states * share).t()
        for part in range(0, weight.shape[0], WEIGHT_SLICE):
            columns = slice(part, part + WEIGHT_SLICE)
            if grad_states is not None:
                _add_wide_product(grad_states[chunk], slope[:, columns], weight[columns].t())
            if grad_weight is not None:
                _add_wide_product(grad_weight[columns], slope[:, columns].t(), weighted)
        if grad_states is not None:
            grad_states[chunk] *= share
        del slope  # no two chunks' logits at once
    if is_half and grad_weight is not None:
        grad_weight /= divisor * STEEP
    return loss, grad_states, grad_weight


class _LinearCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` with its gradients; the product is computed in `dtype`, whatever that of the inputs."""

    @staticmethod
    def forward(ctx, hidden_states: Tensor, weight: Tensor, labels: Tensor, divisor: Tensor, dtype) -> Tensor:
        operands = hidden_states.to(dtype), weight.to(dtype)
        loss, *ctx.grads = _loss_and_gradients(*operands, labels, divisor, ctx.needs_input_grad[:2])
        ctx.dtypes = hidden_states.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.grads
        if torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph():
            scaled = (None if g is None else g * grad for g in grads)  # backward may come again
        else:
            ctx.grads = None  # handed over: a second reference would make autograd copy them
            scaled = (None if g is None else g.mul_(grad) for g in grads)
        return *(None if g is None else g.to(d) for g, d in zip(scaled, ctx.dtypes, strict=True)), None, None, None


def is_plain_matrix(head: nn.Module) -> bool:
    """True for a head whose call is the product with its weight and nothing else.

    False with an adapter, a quantised or sharded weight, a parametrization, a bias, a hook or a replaced forward.
    """
    return (
        type(head) in (nn.Linear, ArlowLinear)
        and type(head.weight) is nn.Parameter
        and head.bias is None
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks)
        and not _has_any_global_hook()
    )


def next_token_loss(
    hidden_states: Tensor,
    head: nn.Module,
    labels: Tensor | None = None,
    *,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
    ignore_index: int = IGNORED,
) -> Tensor | None:
    """`linear_cross_entropy` of (B, T, D) hidden states against the (B, T) token after each.

    None where the head is more than a matrix, lies on another device, or where torch.func differentiates.
    """
    weight = head.weight if is_plain_matrix(head) else None
    if not isinstance(weight, nn.Parameter) or weight.device != hidden_states.device or is_transformed():
        return None
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels[:, 1:], (0, 1), value=ignore_index)
    flat_labels = shift_labels.flatten().to(hidden_states.device)
    if ignore_index != IGNORED:
        flat_labels = flat_labels.masked_fill(flat_labels == ignore_index, IGNORED)
    return linear_cross_entropy(hidden_states.flatten(0, -2), weight, flat_labels, num_items_in_batch)


def linear_cross_entropy(
    hidden_states: Tensor, weight: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Mean cross-entropy of `hidden_states @ weight.T` against `labels`, a float32 scalar.

    Args:
        hidden_states: (N, D).
        weight: (V, D).
        labels: (N,) int64; -100 is ignored.
        num_items_in_batch: divides the sum; None: the number of labels that count.
    """
    device_type, dtype = hidden_states.device.type, weight.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    counts = labels != IGNORED
    if num_items_in_batch is None:
        divisor = counts.sum()
    elif isinstance(num_items_in_batch, Tensor):
        divisor = num_items_in_batch.to(labels.device)
    else:  # filled in there: a copy from the host would wait for the device
        divisor = torch.full((), num_items_in_batch, device=labels.device)
    if device_type == "cpu" and not torch.compiler.is_compiling():  # elsewhere the choice would wait for the device
        hidden_states, labels = hidden_states[counts], labels[counts]
    with torch.autocast(device_type, enabled=False):
        if torch.is_grad_enabled() and (hidden_states.requires_grad or weight.requires_grad):
            return _LinearCrossEntropy.apply(hidden_states, weight, labels, divisor, dtype)
        operands = hidden_states.to(dtype), weight.to(dtype)
        return _loss_and_gradients(*operands, labels, divisor, needs=(False, False))[0]


def head_output(
    model,
    outputs,
    labels: Tensor | None,
    logits_to_keep: int | Tensor,
    *,
    skip_logits: bool = False,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
    **kwargs,
) -> CausalLMOutputWithPast:
    """Logits of the positions to keep (last n, 0: all; a list; a list per row; a mask), and with `labels` the loss.

    With `skip_logits` the loss alone, in a fraction of the memory and time.
    """
    if skip_logits and labels is None:
        raise ValueError("skip_logits leaves nothing to return without labels; give labels or leave it out")
    hidden_states = outputs.last_hidden_state
    counting = {"num_items_in_batch": num_items_in_batch, "shift_labels": shift_labels}
    logits = loss = None
    if skip_logits:
        if model.loss_function is ForCausalLMLoss:
            ignore_index = kwargs.get("ignore_index", IGNORED)
            loss = next_token_loss(hidden_states, model.lm_head, labels, ignore_index=ignore_index, **counting)
        if loss is None:
            logger.warning_once(
                "skip_logits has no effect: lm_head is more than a matrix (an adapter, a quantised weight, a bias, a "
                "hook), or the loss is not that of the next token"
            )
    if loss is None:
        logits = model.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
        if labels is not None:
            loss = model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **counting, **kwargs)
    return CausalLMOutputWithPast(
        loss=loss,
        logits=logits,
        cache=outputs.cache,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )
