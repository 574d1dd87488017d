"""Every command that opens a model refuses a folder that holds none before it loads libraries that take seconds."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from arlow_vl.cli import quiet_warnings
from tests.evaluation.tasks.test_early_refusals import RUN
from tests.evaluation.tasks.test_resume import TASK

ROOT = Path(__file__).parents[2]
FOX = str(ROOT / "tests" / "samples" / "fox.jpg")


@pytest.mark.parametrize(
    "words",
    [
        ["caption", FOX, "--model", "gone"],
        ["vqa", FOX, "what is it?", "--model", "gone"],
        ["explain", FOX, "--model", "gone", "--out", "heat.png"],
        ["verify-heat", FOX, FOX, "--model", "gone", "--question", "what?"],
        ["chat", "--model", "gone"],
        ["generate", "the", "--model", "gone"],
        ["serve", "gone", "--port", "0"],
        ["demo", "gone", "--port", "0"],
        ["verify-frozen", "gone", "gone"],
        ["export", "gone", "--as", "llama", "--out", "llama"],
    ],
    ids=lambda words: words[0],
)
def test_a_folder_without_a_model_is_refused_before_torch_is_loaded(tmp_path, words):
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "arlow: gone holds no config.json; name the hf folder of a finished run (see `arlow fit`)\n"
    assert json.loads(done.stdout) == {"status": 4, "slow": []}
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["caption", FOX, "--model", "text"],
        ["vqa", FOX, "what is it?", "--model", "text"],
        ["explain", FOX, "--model", "text", "--out", "heat.png"],
        ["verify-heat", FOX, FOX, "--model", "text", "--question", "what?"],
        ["evaluate", "--model", "text", "--task", "mine.yaml", "--data", ".", "--output", "results"],
    ],
    ids=lambda words: words[0],
)
def test_a_text_model_that_is_to_see_is_refused_before_torch_is_loaded(tmp_path, words):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "arlow"}')
    (tmp_path / "text" / "model.safetensors").touch()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TASK))
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    reason = "a text model sees no images; name the hf folder of a vision run"
    assert done.stderr == f"arlow: text holds a model of type 'arlow', expected 'arlow_vl' ({reason})\n"
    assert json.loads(done.stdout) == {"status": 4, "slow": []}


def test_a_warning_of_a_kernel_that_is_done_without_is_kept_off_commands(caplog):
    """bitsandbytes says on some processors that it "failed to load" one, whenever peft brings it in."""
    quiet_warnings()
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.warning("Failed to load CPU gemm_4bit_forward")
    log.error("a fault")
    assert caplog.messages == ["a fault"]


@pytest.mark.parametrize("stream", ["<&-", ">&-"])
def test_a_standard_stream_that_is_closed_is_one_where_nobody_is(stream):
    """Python has None for it, which answers nothing."""
    asks = "import sys; from arlow_vl.cli import open_closed_streams as o; o(); sys.stdin.isatty(); sys.stdout.isatty()"
    command = ["bash", "-c", f'"$0" -c "$1" {stream}', sys.executable, asks]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
