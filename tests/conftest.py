"""Shape annotations are checked on every call of the tests; one small decoder is shared by the modelling tests."""

import argparse
import errno
import fcntl
import gc
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

# All of ours but the configurations: transformers builds their constructors, and the hook would replace them.
CHECKED = (
    "models.arlow.attention models.arlow.documents models.arlow.runs models.arlow.segments "
    "models.arlow.segment_building models.arlow.layout models.arlow.linear models.arlow.loss "
    "models.arlow.cache_arlow models.arlow.generation_arlow models.arlow.layers_arlow "
    "models.arlow.attention_inputs_arlow models.arlow.modeling_arlow "
    "models.arlow_vl.modeling_arlow_vl models.arlow_vl.layout_arlow_vl models.arlow_vl.processing_arlow_vl "
    "models.arlow_vl.image_processing_arlow_vl data evaluation training"
)


def only_hands_out() -> bool:
    """Whether this process of `pytest --numprocesses 2` runs no test itself: it then starts the others at once."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-n", "--numprocesses", default="0")
    return parser.parse_known_args()[0].numprocesses != "0" and "PYTEST_XDIST_WORKER" not in os.environ


if not only_hands_out():
    import hypothesis
    import torch

    # Heavy libraries first: the import hook then has only our own modules to rewrite.
    import transformers.modeling_utils  # noqa: F401

    from tests import shapes

    hypothesis.settings.register_profile("busy machine", deadline=None)
    hypothesis.settings.load_profile("busy machine")
    torch.set_num_threads(1)  # on busy cores, two threads wait for each other at every small product
    shapes.install(["vision", *(f"arlow_vl.{name}" for name in CHECKED.split())])


def pytest_collection_finish():
    """What the imports have made stays to the end, so the collector of garbage need not look through it each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """Libraries complain at the end of what they find uncollected."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded():
    import torch

    # torch.manual_seed asks every kind of device that is not there too, and notes a traceback: two milliseconds a test
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(0)


@pytest.fixture
def bfloat16_by_default():
    """As Lightning's bf16-true while a model computes: a tensor made without a dtype is bfloat16."""
    import torch

    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def without_float64(monkeypatch):
    """The tensors' device has none, as Apple's GPUs: only what `cpu` has copied can be widened."""
    import torch

    cpu, double = torch.Tensor.cpu, torch.Tensor.double

    def copied(tensor):
        copy = cpu(tensor).clone()
        copy.is_copy = True
        return copy

    def widened(tensor):
        if not hasattr(tensor, "is_copy"):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", copied)
    monkeypatch.setattr(torch.Tensor, "double", widened)


@pytest.fixture
def small_config():
    from arlow_vl.models.arlow.configuration_arlow import ArlowConfig

    return ArlowConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        cross_attention_interval=2,
    )


@pytest.fixture
def open_model(small_config):
    """A small decoder in eval mode whose cross-attention gates stand open."""
    from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM

    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    return model


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has none, as Lustre unless it is asked for them."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def open_gates(model) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(0.7)


def once_a_run(factory: pytest.TempPathFactory, name: str, make: Callable[[], Any]) -> Any:
    """What `make` returned, as JSON holds it, in whichever process of the run asked first."""
    folder = factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (folder / f"{name}.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if not (held := file.read()):
            held = json.dumps(make())
            file.write(held)
    return json.loads(held)


@pytest.fixture(scope="session")
def fresh_program(tmp_path_factory):
    """What a process of its own printed that imports ours where flash-attn is missing; imports take most of its time,
    so it answers for several tests."""
    code = """if True:
        import json, sys
        import experiments
        sys.modules["flash_attn"] = None
        import arlow_vl.models.arlow.modeling_arlow
        from arlow_vl.data.order import shuffled_order
        import torchao.quantization
        print(json.dumps({"order": list(map(int, shuffled_order(3, "a", 1, 50)))}))
    """
    return once_a_run(tmp_path_factory, "fresh-program", lambda: ran(code, PYTHONHASHSEED="77"))


@pytest.fixture(scope="session")
def fresh_doctor(tmp_path_factory):
    """What the true command `arlow doctor --json` printed, in whose process torchao is imported afterwards."""
    command = str(Path(sysconfig.get_path("scripts"), "arlow"))
    code = f"""if True:
        import runpy, sys
        sys.argv = ["arlow", "doctor", "--json"]
        try: runpy.run_path({command!r}, run_name="__main__")
        except SystemExit as end: assert not end.code
        import torchao.quantization
    """
    return once_a_run(tmp_path_factory, "fresh-doctor", lambda: ran(code))


def ran(code: str, **variables: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | variables
    command, root = [sys.executable, "-c", code], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}
