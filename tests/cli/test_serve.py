"""`arlow serve` answers real requests, and says at once what it cannot serve."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available

from arlow_vl.cli import main
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from tests.tiny_runs import TINY_MODEL, tiny_tokenizer

ROOT = Path(__file__).parents[2]
serving = pytest.mark.skipif(not is_serve_available(), reason="needs the extra `serve`: fastapi, uvicorn, openai")


@pytest.fixture
def folder(tmp_path):
    tokenizer = tiny_tokenizer()
    model = ArlowForCausalLM(ArlowConfig(**TINY_MODEL, vocab_size=len(tokenizer)))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def post(port: int, path: str, **body) -> dict:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait_until_healthy(port: int, server: subprocess.Popen) -> None:
    for _ in range(600):
        assert server.poll() is None, server.communicate()[1]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError("the server did not answer within two minutes")


@serving
@pytest.mark.slow
@pytest.mark.parametrize(
    "batching", [[], ["--continuous-batching", "--cb-num-blocks", "4", "--cb-max-batch-tokens", "64"]]
)
def test_a_served_model_answers_as_generate_does(folder, batching):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from arlow_vl.cli import run; run()",
        "serve",
        str(folder),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    command += ["--device", "cpu", *batching]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until_healthy(port, server)
        model = {"model": str(folder.resolve()), "max_tokens": 8, "temperature": 0}
        completion = post(port, "/v1/completions", prompt="the cat sat", **model)
        messages = [{"role": "user", "content": "the cat sat"}]
        chat = post(port, "/v1/chat/completions", messages=messages, **model)
    finally:
        server.terminate()
        server.communicate(timeout=30)

    tokenizer = tiny_tokenizer()
    prompt = tokenizer("the cat sat", return_tensors="pt")
    decoder = ArlowForCausalLM.from_pretrained(folder)
    generated = decoder.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert completion["choices"][0]["text"] == tokenizer.decode(generated, skip_special_tokens=True)
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert chat["usage"]["completion_tokens"] == 8


@serving
def test_a_vision_language_model_is_refused(small_config, tmp_path, capsys):
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=160)
    config = ArlowVLConfig(text_config=small_config, vision_config=vision_config)
    ArlowVLForConditionalGeneration(config).save_pretrained(tmp_path)
    assert main(["serve", str(tmp_path)]) == 4
    assert "holds a model of type 'arlow_vl', expected 'arlow'" in capsys.readouterr().err


@serving
def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nowhere")]) == 4
    assert "nowhere holds no config.json" in capsys.readouterr().err


@pytest.mark.skipif(is_serve_available(), reason="the extra `serve` is installed")
def test_without_the_extra_the_message_names_it(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 2
    assert "arlow-vl[serve]" in capsys.readouterr().err
