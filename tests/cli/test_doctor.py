"""`arlow doctor`: the machine as it is, and the gate's own answers."""

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
import transformers

from arlow_vl.cli import main
from arlow_vl.cli.doctor import advise_precision
from arlow_vl.cli.missing import USES, little_disk, missing_packages, odd_threads
from arlow_vl.cores import cores
from arlow_vl.models.arlow.attention import kernel_for
from arlow_vl.models.arlow.linear import cpu_vendor, product_for


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


def test_the_vendor_of_the_processor_is_named(found):
    assert cpu_vendor() in found["machine"]["CPU"]


def test_the_products_are_those_of_the_gate_with_its_reason(found):
    assert [row["dtype"] for row in found["products"]] == ["float32", "bfloat16", "float16", "float64"]
    for row in found["products"]:
        choice = product_for(getattr(torch, row["dtype"]), row["device"])
        assert (row["kernel"], row["reason"]) == (choice.kernel, choice.reason)


@pytest.mark.parametrize(
    ("flags", "advised", "why"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16", "bf16-mixed", "AMX multiplies"),
        ("fpu avx2 avx512f avx512_bf16", "bf16-mixed", "AVX512-BF16: "),
        ("fpu avx2 avx512f", "32-true", "neither AMX"),
        ("", "32-true", "neither AMX"),
    ],
)
def test_bf16_is_advised_where_the_processor_multiplies_it(flags, advised, why):
    precision, reason = advise_precision(flags.split())
    assert precision == advised and reason.startswith(why)


def test_a_command_lets_idle_threads_sleep(fresh_doctor):
    assert json.loads(fresh_doctor["out"])["machine"]["OpenMP waits"] == "PASSIVE"


@pytest.mark.parametrize(("given", "seen"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_how_threads_wait_is_said_before_torch_loads_unless_the_user_has(given, seen):
    """OpenMP reads the variable when torch loads."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    command = str(Path(sysconfig.get_path("scripts"), "arlow"))
    code = (
        f"import os, runpy, sys; sys.argv = ['arlow', '--version']\ntry: runpy.run_path({command!r}, None, '__main__')"
    )
    code += "\nexcept SystemExit: print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == f"False {seen}"


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


def extras() -> dict[str, list[str]]:
    with open(Path(__file__).parents[2] / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]["optional-dependencies"]


def test_every_extra_has_a_use_that_is_told():
    assert USES.keys() == extras().keys() - {"dev"}


def test_a_package_that_is_missing_is_named_with_its_use_and_what_to_do(monkeypatch):
    made = [*(f"{name}; extra == 'demo'" for name in ("pillow>=1", "no-such-package>=2")), "nor-this; extra == 'flash'"]
    monkeypatch.setattr("arlow_vl.cli.missing.requires", lambda name: made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = missing_packages()  # without CUDA flash-attn is of no use
    assert found == ("no-such-package", "`arlow data fetch` and `make demo`", "pip install 'arlow-vl[demo]'")


def test_threads_that_do_not_fit_the_cores_are_told(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores() + 1)
    (found,) = odd_threads()
    assert found.advice == f"set OMP_NUM_THREADS={cores()}"
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores() - 1)
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores() - 1))
    (found,) = odd_threads()
    assert found.advice == "unset OMP_NUM_THREADS"


def test_a_disk_that_is_full_is_told(monkeypatch):
    monkeypatch.setattr("arlow_vl.cli.missing.free_bytes", lambda: 10**9)
    (found,) = little_disk()
    assert found.what == "disk space, 1.0 GB are free here" and "2.4 GB" in found.use


def test_what_is_missing_stands_below_the_tables(found, capsys):
    assert main(["doctor"]) == 0
    tail = capsys.readouterr().out.rpartition("missing")[2].splitlines()[1:]
    assert tail == [f"- {one['what']}, for {one['use']}: {one['advice']}" for one in found["missing"]]


def test_a_checkout_that_was_never_installed_runs(monkeypatch, capsys):
    def none_is_installed(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("arlow_vl.versions.version", none_is_installed)
    monkeypatch.setattr("arlow_vl.cli.missing.requires", none_is_installed)
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, "arlow not installed\n")
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["timm"] == "not installed"
