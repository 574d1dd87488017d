"""The loss at a vocabulary of 131,072: time and memory of each way, forward and backward, beside plain logits."""

from collections.abc import Callable, Iterator

import torch

from experiments.benchmarks.gpu.bench import Bench, Figure
from experiments.benchmarks.loss_memory import VOCAB, WAYS

TOKENS, WIDTH = 16384, 1024
TOY = 32, 16, 64  # tokens, width, vocabulary
MEMORY_GOAL, SPEED_GOAL = 0.15, 0.95


def wide_loss(bench: Bench) -> Iterator[Figure]:
    tokens, width, vocab = TOY if bench.toy else (TOKENS, WIDTH, VOCAB)
    options = {"device": bench.device, "dtype": bench.dtype}
    states = torch.randn(tokens, width, **options, requires_grad=True)
    weight = (torch.randn(vocab, width, **options) * 0.02).requires_grad_()
    labels = torch.randint(vocab, (tokens,), device=bench.device)

    def backward(way: str) -> Callable[[], None]:
        def run() -> None:
            states.grad = weight.grad = None
            WAYS[way](states, weight, labels).backward()

        return run

    cases = {way: backward(way) for way in WAYS if bench.device == "cuda" or way != "torch, chunks of 256"}
    for run in cases.values():
        run()
    states.grad = weight.grad = None
    memory = {way: bench.peak_bytes(run) for way, run in cases.items()}
    timings = bench.timed(cases)
    losses = {way: WAYS[way](states, weight, labels).item() for way in cases}
    plain = "materialised"
    for way in cases:
        ours = way == "arlow"
        seconds = 6 * tokens * width * vocab / (0.85 * bench.matmul) + 40 * tokens * vocab / bench.bandwidth
        yield Figure(
            f"{way}: speed over plain logits",
            timings.speed_over(way, plain)["median"],
            "x",
            goal=SPEED_GOAL if ours else None,
            note=f"{1e3 * timings.median(way):.3g} ms, predicted {1e3 * seconds:.3g}; loss {losses[way]:.4f}",
        )
        yield Figure(
            f"{way}: memory over plain logits",
            memory[way] / memory[plain] if memory[plain] else 0.0,
            "x",
            goal=MEMORY_GOAL if ours else None,
            is_most=True,
            note=f"{memory[way] / 2**30:.2f} GiB",
        )
