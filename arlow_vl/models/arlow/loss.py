# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Cross-entropy of a language-model head without its logits.

The logits of 1,024 tokens over a vocabulary of 131,072 take half a gigabyte, and a plain loss holds three of them. Here
a few rows exist at a time, and their gradient is made while they do (the idea of arXiv:2410.10989, section 3.2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import logging

from .linear import product

logger = logging.get_logger(__name__)

IGNORED = -100
WEIGHT_SLICE = 16384
"""Rows of the head's weight whose gradient is added up at a time, so that no second gradient of full size exists."""


def rows_at_a_time(vocab_size: int, device_type: str) -> int:
    """Few enough rows of float32 logits for the memory (32 MiB, 1 GiB on a GPU), enough for the products' full rate."""
    if device_type == "cpu":
        return min(max(2**23 // vocab_size, 64), 256)
    return max(2**28 // vocab_size, 64)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states: Tensor, weight: Tensor, labels: Tensor, divisor: Tensor) -> Tensor:
        needs_states, needs_weight = ctx.needs_input_grad[:2]
        grad_states = torch.zeros_like(hidden_states) if needs_states else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        loss = torch.zeros_like(divisor, dtype=torch.float32) / divisor  # no label at all: NaN, as everywhere in torch
        rows = rows_at_a_time(weight.shape[0], hidden_states.device.type)
        for start in range(0, hidden_states.shape[0], rows):
            chunk = slice(start, start + rows)
            states, targets = hidden_states[chunk], labels[chunk]
            counts = targets != IGNORED
            targets = targets.clamp(min=0)[:, None]
            share = (counts / divisor)[:, None]
            log_probs = product(states, weight).float()
            torch.log_softmax(log_probs, dim=-1, out=log_probs)
            loss -= (log_probs.gather(1, targets) * share).sum()
            if grad_states is None and grad_weight is None:
                continue
            # d loss / d logits, but for the row's share of the loss, which is cheaper to apply to the narrow side.
            slope = log_probs.exp_().scatter_add_(1, targets, log_probs.new_full(targets.shape, -1.0))
            slope = slope.to(weight.dtype)
            if grad_states is not None:
                grad_states[chunk] = product(slope, weight.t()) * share
            if grad_weight is not None:
                weighted = (states * share).to(weight.dtype).t()
                for part in range(0, weight.shape[0], WEIGHT_SLICE):
                    columns = slice(part, part + WEIGHT_SLICE)
                    grad_weight[columns] += product(slope[:, columns].t(), weighted)
        ctx.grads = grad_states, None if grad_weight is None else grad_weight.to(weight.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # handed over: a second reference would make autograd copy them
        scaled = (None if g is None else g.mul_(grad.to(g.dtype)) for g in grads)
        return *scaled, None, None


def next_token_loss(
    hidden_states: Tensor,
    head: nn.Module,
    labels: Tensor | None = None,
    *,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
) -> Tensor | None:
    """`linear_cross_entropy` of (B, T, D) hidden states against the (B, T) token after each.

    None where the head's weight cannot be read as a matrix: it is quantised, sharded or behind an adapter.
    """
    weight = getattr(head, "weight", None)
    if weight is None or type(weight) is not nn.Parameter or weight.device != hidden_states.device:
        return None
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    flat_labels = shift_labels.flatten().to(hidden_states.device)
    return linear_cross_entropy(hidden_states.flatten(0, -2), weight, flat_labels, num_items_in_batch)


def linear_cross_entropy(
    hidden_states: Tensor, weight: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Mean cross-entropy of `hidden_states @ weight.T` against `labels`, a float32 scalar.

    Args:
        hidden_states: (N, D).
        weight: (V, D).
        labels: (N,) int64; -100 counts for nothing.
        num_items_in_batch: divides the sum; None: the number of labels that count.
    """
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
    counts = labels != IGNORED
    divisor = counts.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=labels.device)
    if device_type == "cpu" and not torch.compiler.is_compiling():  # elsewhere the choice would wait for the device
        hidden_states, labels = hidden_states[counts], labels[counts]
    with torch.autocast(device_type, enabled=False):
        return _LinearCrossEntropy.apply(hidden_states, weight, labels, divisor)


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
    """Logits of the positions to keep (last n, 0: all; a list; a list a row; a mask), and with `labels` the loss.

    With `skip_logits` the loss alone, in a fraction of the memory and time (`loss.py`).
    """
    if skip_logits and labels is None:
        raise ValueError("skip_logits leaves nothing to return without labels; give labels or leave it out")
    hidden_states = outputs.last_hidden_state
    counting = {"num_items_in_batch": num_items_in_batch, "shift_labels": shift_labels}
    logits = loss = None
    if skip_logits:
        loss = next_token_loss(hidden_states, model.lm_head, labels, **counting)
        if loss is None:
            logger.warning_once("skip_logits has no effect: the weight of lm_head is not a plain matrix on one device")
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
