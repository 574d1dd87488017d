"""FlashAttention's varlen kernel against SDPA with a mask on a GPU, forward and backward, self- and cross-attention."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from arlow_vl.models.arlow.attention import kernel_for, varlen_attention
from arlow_vl.models.arlow.segments import Runs
from experiments.benchmarks.measure import alternate, table

HEADS, KEY_HEADS, HEAD_DIM = 16, 4, 128
TOKENS = (2048, 8192, 32768)
DOCUMENT, PATCHES = 1024, 576  # of each run


def synchronised(run: Callable[[], object]) -> None:
    run()
    torch.cuda.synchronize()


def matmul_tflops() -> float:
    """bf16, 8192 x 8192, the best of twenty."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    timings = alternate({"matmul": partial(synchronised, lambda: left @ right)}, rounds=20, warmup=3)
    return 2 * 8192**3 / min(timings.seconds["matmul"]) / 1e12


def cases(tokens: int, kind: str) -> tuple[dict[str, Callable[[], None]], float]:
    """Both kernels over the same runs, and the FLOPs of one forward and backward that the runs need."""
    count = max(tokens // DOCUMENT, 1)
    keys_each = DOCUMENT if kind == "self" else PATCHES
    queries, keys = (Runs.of_lengths(torch.full((count,), n, device="cuda")) for n in (DOCUMENT, keys_each))
    q = torch.randn(count * DOCUMENT, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (
        torch.randn(count * keys_each, KEY_HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2)
    )
    run_of = [torch.arange(count, device="cuda").repeat_interleave(n) for n in (DOCUMENT, keys_each)]
    mask = run_of[0][:, None] == run_of[1]
    if kind == "self":
        mask &= torch.ones_like(mask).tril()

    def backward(attend: Callable[[], Tensor]) -> None:
        q.grad = k.grad = v.grad = None
        attend().sum().backward()
        torch.cuda.synchronize()

    def varlen() -> Tensor:
        return varlen_attention(
            q, k, v, query_runs=queries, key_runs=keys, scaling=HEAD_DIM**-0.5, is_causal=kind == "self"
        )

    def masked() -> Tensor:
        q_, k_, v_ = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask[None, None], enable_gqa=True)

    causal = 0.5 if kind == "self" else 1.0
    flops = 3.5 * 4 * count * DOCUMENT * keys_each * HEADS * HEAD_DIM * causal  # backward is 2.5 forwards
    return {"varlen": partial(backward, varlen), "SDPA with a mask": partial(backward, masked)}, flops


def measure_varlen(rounds: int) -> tuple[dict, str]:
    """Nothing without a GPU whose gate opens the varlen kernel, and a sentence that says so."""
    if not torch.cuda.is_available():
        return {}, "Varlen against SDPA was not run: there is no CUDA device."
    choice = kernel_for(torch.bfloat16, "cuda", HEAD_DIM)
    if choice.kernel != "varlen":
        return {}, f"Varlen against SDPA was not run: {choice.reason}."
    peak = matmul_tflops()
    figures: dict[str, object] = {"matmul_tflops": round(peak, 1)}
    lines = []
    for kind in ("self", "cross"):
        for tokens in TOKENS:
            runs, flops = cases(tokens, kind)
            timings = alternate(runs, rounds, warmup=3)
            rate = {name: flops / timings.median(name) / 1e12 for name in runs}
            speed = timings.speed_over("varlen", "SDPA with a mask")
            figures[f"{kind} {tokens}"] = {"tflops": rate, "varlen_over_sdpa": speed}
            lines.append(
                [kind, tokens, *(f"{x:.1f}" for x in rate.values()), f"{rate['varlen'] / peak:.2f}", speed["median"]]
            )
    header = ["attention", "tokens", "varlen TFLOP/s", "SDPA TFLOP/s", "varlen of matmul", "varlen over SDPA"]
    return figures, f"bf16 matmul {peak:.0f} TFLOP/s\n\n{table(header, lines)}"
