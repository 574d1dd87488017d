"""The flash-attn package: never imported at load, and nothing breaks when it is absent or broken."""

import importlib
import logging
import subprocess
import sys

import pytest
import torch

from arlow_vl.models.arlow import attention
from arlow_vl.models.arlow.attention import flash_attn_state, kernel_for, varlen_provider

BROKEN = 'raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E")\n'
FAKES = {
    "present": '__version__ = "2.8.3"\ndef flash_attn_varlen_func(*args, **kwargs): ...\n',
    "broken": BROKEN,
    "unloadable": 'raise OSError("libcudart.so.12: cannot open shared object file")\n',
    "too old": "def flash_attn_func(*args, **kwargs): ...\n",
}
CACHES = kernel_for, varlen_provider, flash_attn_state


@pytest.fixture
def without_torchs_kernel(monkeypatch):
    """As on a torch that has no `torch.nn.attention.varlen`; the caches are empty before and after."""
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(fake)` puts such a flash_attn on the path."""

    def install_fake(fake: str) -> None:
        (tmp_path / "flash_attn").mkdir()
        (tmp_path / "flash_attn" / "__init__.py").write_text(FAKES[fake])
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    yield install_fake
    sys.modules.pop("flash_attn", None)


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        ("broken", "flash-attn is broken (flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E)"),
        ("unloadable", "flash-attn is broken (libcudart.so.12: cannot open shared object file)"),
        ("too old", "flash-attn is broken (module 'flash_attn' has no attribute 'flash_attn_varlen_func')"),
    ],
)
def test_a_broken_flash_attn_counts_as_absent_and_the_reason_says_so(without_torchs_kernel, install, fake, reason):
    install(fake)
    choice = kernel_for(torch.bfloat16, "cuda", 64)
    assert choice.kernel == "sdpa"
    assert choice.reason == f"this torch has no torch.nn.attention.varlen, and {reason}"


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed here")
def test_without_any_varlen_kernel_the_gate_stays_shut_and_says_why(without_torchs_kernel):
    choice = kernel_for(torch.bfloat16, "cuda", 64)
    assert choice.kernel == "sdpa"
    assert choice.reason == "this torch has no torch.nn.attention.varlen, and flash-attn is absent"


def test_a_whole_flash_attn_stands_in_for_torchs_kernel(without_torchs_kernel, install):
    install("present")
    choice = kernel_for(torch.float16, "cuda", 64)
    assert choice.kernel == "varlen"
    assert choice.reason.endswith("varlen kernel of flash_attn")


def test_off_cuda_no_kernel_is_looked_for(without_torchs_kernel, install):
    install("broken")
    assert kernel_for(torch.bfloat16, "cpu", 64).reason == "flash kernels run on CUDA, this run is on cpu"
    assert flash_attn_state.cache_info().misses == 0


def test_a_decision_and_its_reason_are_logged_once_for_each_case(caplog):
    kernel_for.cache_clear()
    with caplog.at_level(logging.INFO, logger=attention.logger.name):
        for _ in range(3):
            for head_dim in (64, 96):
                kernel_for(torch.float32, "cpu", head_dim)
            kernel_for(torch.float64, "cpu", 64)
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "attention kernel for torch.float32, cpu, head size 64: sdpa",
        "attention kernel for torch.float32, cpu, head size 96: sdpa",
        "attention kernel for torch.float64, cpu, head size 64: sdpa",
    ]
    assert all("flash kernels take fp16 and bf16" in record.getMessage() for record in caplog.records)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules["torch.nn.attention.varlen"] = None
import arlow_vl
from arlow_vl.models.auto import ArlowConfig, ArlowForCausalLM
assert "flash_attn" not in sys.modules, "imported at load"
import torch
sizes = dict(vocab_size=30, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1)
model = ArlowForCausalLM(ArlowConfig(**sizes, num_hidden_layers=1, cross_attention_interval=1))
for dtype in (torch.float32, torch.bfloat16):
    model.to(dtype)(torch.ones(1, 4, dtype=torch.long))
from arlow_vl.models.arlow.attention import kernel_for
assert "undefined symbol" in kernel_for(torch.bfloat16, "cuda", 64).reason
from arlow_vl.cli import main
assert main(["doctor"]) == 0
"""


def test_a_process_with_a_broken_flash_attn_loads_and_runs_models_and_the_doctor_names_it(tmp_path):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text(BROKEN)
    metadata = tmp_path / "flash_attn-2.8.3.dist-info"  # without it, transformers itself imports the package
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")
    (metadata / "top_level.txt").write_text("flash_attn\n")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "flash-attn    broken (flash_attn_2_cuda.so: undefined symbol" in done.stdout
