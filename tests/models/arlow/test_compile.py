"""torch.compile takes forward and the decode step whole, and a step does not compile anew what the last one did.

In processes of their own: the shape checks of this one do not go through torch's compiler.
"""

import subprocess
import sys

import pytest

from tests.forked import by_fork

PROGRAM = """
import sys
import torch
from transformers import StaticCache
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM

backend, with_cross_blocks, implementation = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_grad_enabled(False)
model = ArlowForCausalLM(ArlowConfig(
    vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, use_cross_attention=with_cross_blocks, initializer_range=0.2)).eval()
model.set_attn_implementation(implementation)
input_ids = torch.randint(20, 300, (2, 8))
padded = torch.ones_like(input_ids)
padded[0, :3] = 0


def decode(step):
    cache = StaticCache(config=model.config, max_cache_len=24)
    logits = model(input_ids, attention_mask=padded, cache=cache).logits
    tokens, mask = [], padded
    for _ in range(8):
        tokens.append(logits[:, -1:].argmax(-1))
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        whole = torch.nn.functional.pad(mask, (0, 24 - mask.shape[1]))  # one shape for every step
        logits = step(tokens[-1], attention_mask=whole, position_ids=mask.sum(1, keepdim=True) - 1, cache=cache).logits
    return torch.cat(tokens, dim=1)


compiled = torch.compile(model, backend=backend, fullgraph=True)
for mask in (None, padded):
    counted = slice(None) if mask is None else mask.bool()
    settings = {"attention_mask": mask, "use_cache": False}
    torch.testing.assert_close(
        compiled(input_ids, **settings).logits[counted], model(input_ids, **settings).logits[counted],
        atol=1e-4, rtol=1e-4)

torch._dynamo.reset()
step = torch.compile(model.forward, backend=backend, fullgraph=True)
expected = decode(model)
assert len(expected.unique()) > 4
assert torch.equal(decode(step), expected)
torch._dynamo.config.error_on_recompile = True
assert torch.equal(decode(step), expected)
"""


def run(backend: str, with_cross_blocks: bool, implementation: str = "sdpa", by=subprocess) -> None:
    command = [sys.executable, "-c", PROGRAM, backend, str(with_cross_blocks), implementation]
    done = by.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_forward_and_decode_step_compile_whole_and_once():
    """With cross-attention blocks, which text alone does not enter."""
    run("eager", with_cross_blocks=True, by=by_fork)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["arlow", "eager"])
def test_every_attention_compiles_whole_and_once(implementation):
    run("aot_eager", with_cross_blocks=True, implementation=implementation)


@pytest.mark.slow
@pytest.mark.parametrize("with_cross_blocks", [False, True])
def test_machine_code_gives_the_same_tokens(with_cross_blocks):
    run("inductor", with_cross_blocks)
