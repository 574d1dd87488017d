# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The dtype gate: one function picks the attention kernel, and every attention of Arlow goes through it.

fp16 and bf16 on CUDA run on FlashAttention's varlen kernel (torch's own, else the flash-attn package); everything else
runs on `scaled_dot_product_attention`. Registered with transformers as `attn_implementation="arlow"`, CUDA's default.
"""

import functools
import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging

from .documents import PADDING
from .runs import Movable, Runs

logger = logging.get_logger(__name__)

ARLOW_ATTENTION = "arlow"
HALF_DTYPES = (torch.float16, torch.bfloat16)
MAX_FLASH_HEAD_DIM = 256  # FlashAttention 2's largest, in multiples of 8
SHORT_ON_CPU = 256  # keys, up to which gradients in bfloat16 are computed in float32: see `_is_better_in_float32`
FLEX_FITS_THREADS = (2, 13)
"""The first torch that compiles flex_attention anew for another number of CPU threads (pytorch/pytorch#185049)."""


@dataclass(frozen=True)
class KernelChoice:
    kernel: Literal["varlen", "sdpa"]
    reason: str


def choose_kernel(
    dtype: torch.dtype,
    device_type: str,
    head_dim: int,
    *,
    dropout: float = 0.0,
    provider: str | None = "torch",
    flash_attn: str = "absent",
) -> KernelChoice:
    """Picks the attention kernel from the dtype that the product is computed in (under autocast: autocast's)."""
    if dtype not in HALF_DTYPES:
        return KernelChoice("sdpa", f"flash kernels take fp16 and bf16, this run computes in {dtype}")
    if device_type != "cuda":
        return KernelChoice("sdpa", f"flash kernels run on CUDA, this run is on {device_type}")
    if provider is None:
        return KernelChoice("sdpa", f"this torch has no torch.nn.attention.varlen, and flash-attn is {flash_attn}")
    if head_dim % 8 or head_dim > MAX_FLASH_HEAD_DIM:
        return KernelChoice(
            "sdpa", f"flash kernels take heads of a multiple of 8 up to {MAX_FLASH_HEAD_DIM}, not {head_dim}"
        )
    if dropout:
        return KernelChoice("sdpa", f"varlen kernels have no dropout, this run drops {dropout:.2g} of the weights")
    return KernelChoice("varlen", f"{dtype} on CUDA, varlen kernel of {provider}")


def default_attention() -> str:
    """`ARLOW_ATTENTION` on a machine with CUDA, else "sdpa", which is all that it would ever run there."""
    return ARLOW_ATTENTION if torch.cuda.is_available() else "sdpa"


@functools.cache
def kernel_for(dtype: torch.dtype, device_type: str, head_dim: int, dropout: float = 0.0) -> KernelChoice:
    """`choose_kernel` with what this machine has; the decision and its reason are logged once."""
    on_cuda = device_type == "cuda"  # elsewhere SDPA is chosen, and no kernel is looked for
    provider = varlen_provider() if on_cuda else None
    flash_attn = flash_attn_state() if on_cuda and provider is None else "not needed"
    choice = choose_kernel(dtype, device_type, head_dim, dropout=dropout, provider=provider, flash_attn=flash_attn)
    logger.info(f"attention kernel for {dtype}, {device_type}, head size {head_dim}: {choice.kernel} ({choice.reason})")
    return choice


@functools.cache
def varlen_provider() -> str | None:
    """Package of the varlen kernel, "torch" or "flash_attn"; None: there is none.

    Imports flash-attn only where torch has no such kernel.
    """
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        return "torch"
    return "flash_attn" if flash_attn_state() == "present" else None


@functools.cache
def flash_attn_state() -> str:
    """State of the flash-attn package: "present", "absent" or "broken (REASON)". Imports it."""
    if importlib.util.find_spec("flash_attn") is None:
        return "absent"
    try:
        importlib.import_module("flash_attn").flash_attn_varlen_func  # noqa: B018
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # usually it was built for another torch
        return f"broken ({' '.join(str(error).split())})"
    return "present"


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a matrix product of `tensor` runs in: autocast decides where it is on."""
    device_type = tensor.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else tensor.dtype


def cast_to(states: Tensor, dtype: torch.dtype) -> Tensor:
    """States for a part of the model in another dtype; under autocast as they are, since every product casts there."""
    return states if torch.is_autocast_enabled(states.device.type) else states.to(dtype)


def takes_varlen(attn_implementation: str, hidden_states: Tensor, head_dim: int, dropout: float = 0.0) -> bool:
    """True if this run's attention takes flat tokens and `cu_seqlens` instead of padded rows and masks."""
    if attn_implementation in ("eager", "sdpa", "flex_attention"):
        return False
    return _is_varlen(compute_dtype(hidden_states), hidden_states.device.type, head_dim, dropout)


def refuse_unsafe_flex(attn_implementation: str | None, device_type: str, torch_version: str) -> None:
    """Refuses a kernel that may write past its buffers.

    flex_attention's CPU kernel has buffers for as many threads as torch had where it was compiled. Older torch takes it
    from the compiler's cache on disk for any number of threads, also in another process, and more overwrite the heap.

    Raises:
        ValueError: flex_attention on a CPU, with such a torch.
    """
    release = tuple(int(number) for number in torch_version.split(".")[:2])
    if attn_implementation == "flex_attention" and device_type == "cpu" and release < FLEX_FITS_THREADS:
        first = ".".join(map(str, FLEX_FITS_THREADS))
        raise ValueError(
            f"flex_attention on a CPU needs torch {first}, this is {torch_version}: it would run kernels compiled for "
            "another number of threads, which overwrite memory; set attn_implementation to 'sdpa'"
        )


@torch.compiler.assume_constant_result  # evaluated once while compiling, not traced
def _is_varlen(dtype: torch.dtype, device_type: str, head_dim: int, dropout: float) -> bool:
    return kernel_for(dtype, device_type, head_dim, dropout).kernel == "varlen"


@functools.cache
def _read_varlen_arguments() -> tuple[str, ...]:
    """Parameter names of this machine's varlen kernel; () for flash-attn's.

    torch renamed the arguments of its `varlen_attn` between 2.10 and 2.12, so its signature is read here, once.
    """
    if varlen_provider() == "flash_attn":
        return ()
    from torch.nn.attention.varlen import varlen_attn

    return tuple(inspect.signature(varlen_attn).parameters)


@torch.compiler.assume_constant_result  # as above: torch 2.11's compiler breaks its graph at the search for packages
def _varlen_arguments() -> tuple[str, ...]:
    return _read_varlen_arguments()


def _varlen_kernel(q: Tensor, k: Tensor, v: Tensor, queries: Runs, keys: Runs, scale: float, causal: bool) -> Tensor:
    """Runs this machine's varlen kernel over flat (tokens, heads, head_dim) tensors."""
    known = _varlen_arguments()
    runs = queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen
    if not known:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, *runs, softmax_scale=scale, causal=causal)
    from torch.nn.attention.varlen import varlen_attn

    # By the version of torch: causality is a flag or a window of (left, right) with -1 for no end; grouped heads and
    # the scale are arguments of later ones alone. What the kernel has no argument for is applied to the operands.
    extra: dict[str, Any] = {"is_causal": causal}
    if "window_size" in known:
        extra = {"window_size": (-1, 0 if causal else -1)}
    if "enable_gqa" in known:
        extra["enable_gqa"] = q.shape[1] != k.shape[1]
    elif q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if "scale" in known:
        extra["scale"] = scale
    else:
        q = q * (scale * q.shape[-1] ** 0.5)  # takes the kernel's own head_dim ** -0.5 out again
    return varlen_attn(q, k, v, *runs, **extra)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_runs: Runs,
    key_runs: Runs,
    scaling: float,
    is_causal: bool,
) -> Tensor:
    """Attention over flat (tokens, heads, head_dim) tensors; run r of the queries sees run r of the keys."""
    return _varlen_kernel(query, key, value, query_runs, key_runs, scaling, is_causal)


@dataclass(frozen=True)
class TextRuns(Movable):
    """The documents of a batch as flat runs, for the varlen path of self-attention."""

    index: Tensor | None
    """(tokens,) int64 positions of text in the flattened (B, T) batch; None where nothing is padding."""
    runs: Runs

    @classmethod
    def of_documents(cls, documents: Tensor) -> "TextRuns":
        """`documents` is (B, T) from `document_ids`."""
        flat = documents.flatten()
        index = (flat != PADDING).nonzero().squeeze(1)
        lengths = torch.unique_consecutive(flat[index], return_counts=True)[1]
        return cls(None if index.shape[0] == flat.shape[0] else index, Runs.of_lengths(lengths))


def arlow_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    text_runs: TextRuns | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (B, H, T, Dh) in, (B, T, H, Dh) out; K/V heads are never repeated in memory.

    The model gives `text_runs`, in place of `attention_mask`, where the gate chose the varlen kernel.
    """
    is_causal = module.is_causal if is_causal is None else is_causal
    if text_runs is not None:
        return _self_attention_over_runs(query, key, value, text_runs, scaling, is_causal), None
    # SDPA's flag lets query i see keys 0..i, counted from the first key: right for text without a past alone. Behind a
    # cache there is a mask, or one query, which sees every key.
    causal_flag = is_causal and attention_mask is None and query.shape[2] > 1
    if causal_flag and key.shape[2] > query.shape[2]:  # an empty static cache: what lies behind the text is unused
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    output = _sdpa(query, key, value, attention_mask, scaling, dropout, causal_flag)
    return output.transpose(1, 2).contiguous(), None


def _sdpa(query, key, value, mask: Tensor | None, scale: float | None, dropout: float, is_causal: bool) -> Tensor:
    settings = {
        "attn_mask": mask,
        "dropout_p": dropout,
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": True if query.shape[1] != key.shape[1] else False,  # noqa: SIM210  # no SymBool, as while compiling
    }
    if not _is_better_in_float32(query, key):
        return F.scaled_dot_product_attention(query, key, value, **settings)
    if mask is not None and mask.is_floating_point():
        settings["attn_mask"] = mask.float()
    with torch.autocast("cpu", enabled=False):
        attended = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **settings)
    return attended.to(compute_dtype(query))


def _is_better_in_float32(query: Tensor, key: Tensor) -> bool:
    """True for attention in bfloat16 on a CPU that has gradients and up to `SHORT_ON_CPU` keys.

    Its gradients take 3 to 6 times as long as in float32, casts included, for up to some hundred tokens (torch 2.15,
    Xeon with AMX). From about 250 on they are level, and far above bfloat16 wins.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled() or not (query.requires_grad or key.requires_grad):
        return False
    return compute_dtype(query) == torch.bfloat16 and key.shape[2] <= SHORT_ON_CPU


def _self_attention_over_runs(query, key, value, text_runs: TextRuns, scaling: float, is_causal: bool) -> Tensor:
    # Padding leaves before the kernel and comes back as zeros, so it costs no attention and reaches no residual.
    batch, _, width, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # (B * T, heads, Dh)
    if text_runs.index is not None:
        q, k, v = (x[text_runs.index] for x in (q, k, v))
    attended = varlen_attention(
        q, k, v, query_runs=text_runs.runs, key_runs=text_runs.runs, scaling=scaling, is_causal=is_causal
    )
    if text_runs.index is not None:
        attended = attended.new_zeros(batch * width, *attended.shape[1:]).index_copy(0, text_runs.index, attended)
    return attended.unflatten(0, (batch, width))


def repeat_kv(states: Tensor, groups: int) -> Tensor:
    """(B, Hkv, T, Dh) -> (B, Hkv * groups, T, Dh); eager attention only, kernels take grouped heads as they are."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention by its definition; also returns the weights."""
    key, value = (repeat_kv(states, module.num_key_value_groups) for states in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    # Never narrower than the scores: float64's lowest number is -inf in float32, and rows of it alone give NaN.
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = F.softmax(scores, dim=-1, dtype=wide).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(ARLOW_ATTENTION, arlow_attention_forward)
AttentionMaskInterface.register(ARLOW_ATTENTION, sdpa_mask)


def packed_causal_mask(documents: Tensor) -> Tensor:
    """(B, 1, T, T) bool causal mask of whole rows, True where a token sees another; `documents` is (B, T).

    Equals what `create_causal_mask` makes with `packed_sequence_mask_function`, whose functions of indices under vmap
    take 8 to 12 ms however small the batch is; this takes 0.03 ms for 3 rows of 32 tokens and 6 ms for 4 of 1,024.
    """
    # Padding is a document of its own here: its rows see something, so no softmax is over nothing.
    columns = torch.arange(documents.shape[1], device=documents.device)
    return (documents[:, None, :, None] == documents[:, None, None, :]) & (columns[:, None] >= columns)
