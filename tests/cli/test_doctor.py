"""`arlow doctor`: the machine as it is, and the gate's own answers."""

import json
import platform

import pytest
import torch
import transformers

from arlow_vl.cli import main
from arlow_vl.models.arlow.attention import kernel_for


@pytest.fixture
def found(capsys):
    assert main(["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_versions_are_those_that_run(found):
    versions = found["versions"]
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == transformers.__version__
    assert versions["timm"] and versions["flash-attn"]


def test_the_machine_is_described(found):
    assert f"{torch.backends.cpu.get_cpu_capability()}" in found["machine"]["CPU"]
    assert (found["machine"]["GPU"] == "none") is not torch.cuda.is_available()
    assert found["machine"]["oneDNN"] == ("available" if torch.backends.mkldnn.is_available() else "absent")


def test_the_table_is_the_gates_answer_for_every_case(found):
    devices = {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}
    cases = {(row["device"], row["dtype"], row["head_size"]) for row in found["attention"]}
    dtypes = ("float32", "bfloat16", "float16", "float64")
    assert cases == {(device, d, size) for device in devices for d in dtypes for size in (64, 96, 128, 192, 256)}
    for row in found["attention"]:
        choice = kernel_for(getattr(torch, row["dtype"]), row["device"], row["head_size"])
        assert (row["kernel"], row["reason"]) == (choice.kernel, choice.reason)


def test_people_get_a_line_for_all_head_sizes_with_the_same_answer(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("cpu     bfloat16"))
    assert "64 96 128 192 256" in line and line.endswith("flash kernels run on CUDA, this run is on cpu")
    assert any(line.startswith("flash-attn ") for line in lines)
