"""Peak memory and time of the loss at a wide vocabulary, one way a process.

Run all with `python -m experiments.benchmarks.decoder`, one with `python -m experiments.benchmarks.loss_memory WAY`.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from arlow_vl.models.arlow.loss import linear_cross_entropy

TOKENS, WIDTH, VOCAB = 1024, 384, 131072
ROUNDS = 9


def materialised(hidden_states, weight, labels):
    return F.cross_entropy(F.linear(hidden_states, weight), labels)


def torch_linear_cross_entropy(hidden_states, weight, labels):
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=256, chunking_method=None)
    return F.linear_cross_entropy(hidden_states, weight, labels, options=options)


WAYS = {"materialised": materialised, "arlow": linear_cross_entropy}
if hasattr(F, "linear_cross_entropy"):
    WAYS["torch, chunks of 256"] = torch_linear_cross_entropy


def resident_mib(field: str) -> float:
    """VmRSS: what the process holds now; VmHWM: its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(way: str) -> dict[str, float]:
    torch.manual_seed(0)
    hidden_states = torch.randn(TOKENS, WIDTH, requires_grad=True)
    weight = nn.Parameter(torch.randn(VOCAB, WIDTH) * 0.02)
    labels = torch.randint(VOCAB, (TOKENS,))
    torch.randn(512, 512) @ torch.randn(512, 512)  # the kernels' own buffers
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident_mib("VmRSS")
    seconds, without = [], []
    for _ in range(ROUNDS + 1):
        hidden_states.grad = weight.grad = None
        start = time.perf_counter()
        WAYS[way](hidden_states, weight, labels).backward()
        seconds.append(time.perf_counter() - start)
        with torch.no_grad():
            start = time.perf_counter()
            WAYS[way](hidden_states, weight, labels)
            without.append(time.perf_counter() - start)
    peak = resident_mib("VmHWM") - before
    hidden_states.grad = weight.grad = None
    loss = WAYS[way](hidden_states, weight, labels)
    loss.backward()
    assert weight.grad is not None
    return {
        "peak_mib": round(peak),
        "milliseconds": round(1000 * statistics.median(seconds[1:])),
        "milliseconds_without_gradients": round(1000 * statistics.median(without[1:])),
        "loss": round(loss.item(), 5),
        "gradient_norm": round(weight.grad.norm().item(), 6),
    }


def in_own_processes() -> dict[str, dict[str, float]]:
    """Every way measured alone, since a process's peak memory only grows."""
    command = [sys.executable, "-m", "experiments.benchmarks.loss_memory"]
    return {way: json.loads(subprocess.check_output([*command, way], text=True).splitlines()[-1]) for way in WAYS}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
