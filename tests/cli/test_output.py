"""Standard output on a full disk: the sentence names it, for every command, buffered or not."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from arlow_vl.cli import exit_status, sentence_of

COMMAND = str(Path(sysconfig.get_path("scripts"), "arlow"))
TOLD = "arlow: standard output cannot be written (No space left on device), and what was printed is not whole; send it"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "--version", "fit --help", "completion bash", "image check a.jpg"])
def test_a_full_disk_behind_standard_output_is_told(tmp_path, words, unbuffered):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": unbuffered}
    (tmp_path / "a.jpg").write_bytes((Path(__file__).parents[1] / "samples" / "fox.jpg").read_bytes())
    with open("/dev/full", "w") as full:
        run = [sys.executable, COMMAND, *words.split()]
        done = subprocess.run(run, env=environment, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 6
    assert done.stderr.startswith(TOLD) and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.00 GiB.\nMore of it"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_command_that_finds_no_memory_says_so(error):
    assert exit_status(error) == 6
    told = sentence_of(error)
    assert told.startswith("no memory is left (") and "--batch-size" in told and "\n" not in told
    assert exit_status(RuntimeError("size mismatch")) is None
