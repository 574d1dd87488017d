"""The varlen kernel against float64 over random layouts, and what really ran behind the dtype gate."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from arlow_vl.models.arlow.attention import kernel_for
from experiments.benchmarks.attention_layouts import FORMS, arranged
from experiments.benchmarks.attention_parity import HALF, drawn
from experiments.benchmarks.attention_reference import measured, reference, small_decoder
from experiments.benchmarks.gpu.bench import Bench, Figure

LAYOUTS, TOY_LAYOUTS = 30, 1
NEAR_SDPA = 2.0
"""Times SDPA's largest error on the same layouts that the kernel's may be: both round to the same format."""


def parity(bench: Bench) -> Iterator[Figure]:
    yield from dtype_gate(bench)
    errors: dict[tuple[torch.dtype, str], float] = defaultdict(float)
    counted = 0
    for number in range(TOY_LAYOUTS if bench.toy else LAYOUTS):
        if not bench.has(5.0):
            break
        counted += 1
        for dtype in HALF:
            documents, model, _ = drawn(number, dtype)
            expected = reference(model, documents)
            model.to(bench.device)
            for implementation in ("arlow", "sdpa"):
                model.set_attn_implementation(implementation)
                for form in FORMS:
                    found = measured(model, documents, partial(arranged, form=form)).errors(expected)
                    errors[dtype, implementation] = max(errors[dtype, implementation], *found.values())
    for dtype in HALF:
        gate, sdpa = errors[dtype, "arlow"], errors[dtype, "sdpa"]
        yield Figure(
            f"{dtype}: largest error of the gate's kernel, outputs and gradients, {counted} layouts x {len(FORMS)}",
            *(gate, "of the largest entry"),
            goal=NEAR_SDPA * sdpa,
            is_most=True,
            note=f"SDPA {sdpa:.2g}; {kernel_for(dtype, bench.device, 64).reason}",
        )


class Ran(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def dtype_gate(bench: Bench) -> Iterator[Figure]:
    """Every dtype, autocast and an explicit request: the kernel that was promised is the one that ran."""
    cases = [(dtype, None, "arlow") for dtype in (torch.float32, *HALF)]
    cases += [(torch.float32, torch.bfloat16, "arlow"), (torch.bfloat16, None, "sdpa")]
    held, notes = 0, []
    for dtype, autocast, implementation in cases:
        model = small_decoder(64, 4, dtype=dtype).to(bench.device)
        model.set_attn_implementation(implementation)
        promised = kernel_for(autocast or dtype, bench.device, 64).kernel if implementation == "arlow" else "sdpa"
        ids = torch.randint(20, 60, (2, 16), device=bench.device)
        precision = torch.autocast(bench.device, dtype=autocast) if autocast else nullcontext()
        with torch.no_grad(), precision, Ran() as ran:
            model(ids, use_cache=False)
        kernel = "varlen" if any("varlen" in name for name in ran.names) else "sdpa"
        held += kernel == promised
        notes.append(f"{dtype}{f' under autocast to {autocast}' if autocast else ''}, {implementation}: {kernel}")
    yield Figure("cases in which the promised kernel ran", held, "cases", goal=len(cases), note="; ".join(notes))
