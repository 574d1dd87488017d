"""Time and peak memory of cross-attention over many images: the segment table against a dense mask, and Mllama's own.

Run the memory of one with `python -m experiments.benchmarks.cross_attention CASE IMAGES`.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaTextCrossAttention, _prepare_cross_attention_mask

from arlow_vl import ArlowConfig
from arlow_vl.models.arlow.documents import document_ids
from arlow_vl.models.arlow.layers_arlow import ArlowGroupedCrossAttention
from arlow_vl.models.arlow.segment_building import build_segment_table
from arlow_vl.models.arlow.segments import flatten_images
from experiments.benchmarks.loss_memory import resident_mib
from experiments.benchmarks.measure import alternate, table

SHAPE = dict(hidden_size=384, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=4)  # noqa: C408
PATCHES = 1601  # of each image: one tile of Llama 3.2's encoder
TEXT = 4096  # tokens of the row, shared out evenly behind its images
IMAGES = (1, 4, 16, 64)
MEMORY_GOAL = 4.0


def sees_number(images: int) -> tuple[Tensor, Tensor]:
    """One row: (T,) bool, the <image> tokens; (T,) the image that each token sees. Every image opens a run."""
    place = torch.arange(TEXT)
    return place % (TEXT // images) == 0, place // (TEXT // images)


def by_segments(attention: ArlowGroupedCrossAttention, text: Tensor, encoder: Tensor) -> Tensor:
    """As the model does it: the table of the batch, then pairs of runs."""
    is_image, _ = sees_number(len(encoder))
    positions = torch.arange(text.shape[1])[None]
    flat, lengths = flatten_images(encoder, None)
    segments = build_segment_table(is_image[None], document_ids(positions), lengths)
    return attention(text.flatten(0, 1)[segments.query_index], flat, segments)


def by_dense_mask(attention: ArlowGroupedCrossAttention, text: Tensor, encoder: Tensor) -> Tensor:
    """The same layer the way peers have it: all text over all patches of the row, and a (1, 1, T, P) mask."""
    _, number = sees_number(len(encoder))
    mask = number[:, None] == torch.arange(len(encoder)).repeat_interleave(PATCHES)
    flat = encoder.flatten(0, 1)[None]
    query = attention.q_norm(attention._heads(attention.q_proj(text))).transpose(1, 2)
    key = attention.k_norm(attention._heads(attention.k_proj(flat))).transpose(1, 2)
    value = attention._heads(attention.v_proj(flat)).transpose(1, 2)
    attended = F.scaled_dot_product_attention(query, key, value, mask[None, None], enable_gqa=True)
    return attention.o_proj(attended.transpose(1, 2).flatten(-2))


def by_mllama(attention: MllamaTextCrossAttention, text: Tensor, encoder: Tensor) -> Tensor:
    """transformers' layer with the mask that its model makes of (rows, T, images, tiles)."""
    _, number = sees_number(len(encoder))
    sees = (number[:, None] == torch.arange(len(encoder)))[None, :, :, None].long()
    mask, _ = _prepare_cross_attention_mask(sees, num_vision_tokens=PATCHES, dtype=text.dtype)  # pyrefly: ignore[bad-argument-type]
    return attention(text, cross_attention_states=encoder.flatten(0, 1)[None], attention_mask=mask)[0]


def arlow_layer() -> ArlowGroupedCrossAttention:
    config = ArlowConfig(**SHAPE, attn_implementation="sdpa")
    return ArlowGroupedCrossAttention(config, 0)


def mllama_layer() -> MllamaTextCrossAttention:
    config = MllamaTextConfig(**SHAPE, cross_attention_layers=[0], attn_implementation="sdpa")  # pyrefly: ignore[unexpected-keyword]
    return MllamaTextCrossAttention(config, 0)


CASES: dict[str, tuple[Callable, Callable]] = {
    "segment table": (arlow_layer, by_segments),
    "dense mask": (arlow_layer, by_dense_mask),
    "Mllama's layer": (mllama_layer, by_mllama),
}


def step(case: str, images: int, *, seed: int = 0) -> Callable[[], Tensor]:
    """Forward and backward of one layer, with the structures that it needs of the batch."""
    torch.manual_seed(seed)
    make, forward = CASES[case]
    layer = make()
    text = torch.randn(1, TEXT, SHAPE["hidden_size"], requires_grad=True)
    encoder = torch.randn(images, PATCHES, SHAPE["hidden_size"], requires_grad=True)

    def run() -> Tensor:
        for tensor in (text, encoder, *layer.parameters()):
            tensor.grad = None
        output = forward(layer, text, encoder)
        output.sum().backward()
        return output.detach()

    return run


def peak_mib(case: str, images: int) -> float:
    """Over what the process held before its first step at this size; run it in a process of its own."""
    step(case, 1)()  # the kernels' own buffers
    run = step(case, images)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_mib("VmRSS")
    run()
    return resident_mib("VmHWM") - before


def memory_in_own_process(case: str, images: int) -> float:
    command = [sys.executable, "-m", "experiments.benchmarks.cross_attention", case, str(images)]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def largest_difference(images: int) -> float:
    """Between the segment table's result and the dense mask's, over the largest entry."""
    ours, dense = (step(case, images)() for case in ("segment table", "dense mask"))
    return ((ours - dense[0]).abs().max() / dense.abs().max()).item()


def measure_cross_attention(rounds: int) -> tuple[dict, str]:
    figures: dict[str, dict] = {}
    lines = []
    for images in IMAGES:
        runs = {case: partial(step(case, images)) for case in CASES}
        many = images == max(IMAGES)  # a dense step of these takes half a minute
        timings = alternate(runs, 1 if many else min(rounds, 5), warmup=0 if many else 1)
        memory = {case: memory_in_own_process(case, images) for case in CASES}
        ours = "segment table"
        figures[str(images)] = {
            "milliseconds": {case: round(1000 * timings.median(case), 2) for case in CASES},
            "peak_mib": {case: round(memory[case], 1) for case in CASES},
            "speed_over": {case: timings.speed_over(ours, case) for case in CASES if case != ours},
            "less_memory_than": {case: round(memory[case] / memory[ours], 2) for case in CASES if case != ours},
        }
        for case in CASES:
            times_faster = timings.speed_over(ours, case)["median"] if case != ours else 1.0
            lines.append(
                [images, case, f"{1000 * timings.median(case):,.1f}", f"{memory[case]:,.0f}",
                 f"{times_faster:.2f}", f"{memory[case] / memory[ours]:.2f}"]
            )  # fmt: skip
            print(lines[-1], flush=True)
    header = ["images a row", "case", "ms", "peak MiB over the inputs", "x slower than the table", "x its memory"]
    return figures | {"largest_difference_at_16": largest_difference(16)}, table(header, lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(peak_mib(sys.argv[1], int(sys.argv[2]))))
