"""Blocks on the varlen path go through torch's compiler as one graph each, also where no GPU can run them."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from torch._dynamo.utils import counters
from arlow_vl import ArlowConfig, ArlowForCausalLM
from arlow_vl.models.arlow import attention
from arlow_vl.models.arlow.segments import Runs, SegmentTable

attention.kernel_for = lambda *_: attention.KernelChoice("varlen", "as on a GPU")
attention.compute_dtype = lambda states: states.dtype  # the device that holds no values has no autocast
sizes = dict(vocab_size=64, hidden_size=128, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
model = ArlowForCausalLM(ArlowConfig(**sizes, num_hidden_layers=4, cross_attention_interval=2))
model.set_attn_implementation("arlow")
with torch.device("meta"):
    texts, keys, queries = (Runs(torch.zeros(3, dtype=torch.int32), 8) for _ in range(3))
    numbers = torch.zeros(16, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    segments = SegmentTable(numbers[0], queries, None, keys, numbers[1], numbers[1])
    states = torch.randn(2, 16, 128, dtype=torch.bfloat16, requires_grad=True)
    images = torch.randn(10, 128, dtype=torch.bfloat16)
    turns = tuple(torch.randn(2, 1, 16, 64) for _ in range(2))
for layer in model.to("meta", torch.bfloat16).model.layers:
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    told = {"position_embeddings": turns, "cache": None, "text_runs": attention.TextRuns(None, texts)}
    compiled(states, images, segments, None, attention_mask=None, **told).sum().backward()
print(counters["stats"]["unique_graphs"], "graphs")
"""


@pytest.mark.slow
def test_one_graph_serves_all_blocks_of_a_kind_on_the_varlen_path():
    """In a process of its own: dynamo cannot trace the annotation checks of the tests."""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["2", "graphs"]  # with a cross block and without
