"""Mllama behind transformers' own server, `transformers serve`: what `arlow serve` is measured beside."""

import contextlib
import copy
import socket
import time
from collections.abc import Iterator
from typing import Any

from transformers import MllamaImageProcessor, MllamaProcessor
from transformers.cli.serve import Serve
from transformers.cli.serving.model_manager import TimedModel

from arlow_vl.serving.assistant import Assistant
from experiments.benchmarks.vision_language import build_mllama

NAME = "mllama"
CHAT = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ image_token }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


@contextlib.contextmanager
def mllama_served(assistant: Assistant, shape: dict) -> Iterator[int]:
    """The port of a server whose Mllama has the assistant's encoder, tokenizer and as many layers and blocks.

    Its answers have no end, so that all of them are as long as they may be.
    """
    arlow: Any = assistant.model
    model = build_mllama(shape, arlow.config.text_config, arlow.model.vision).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = assistant.tokenizer.pad_token_id
    port = _free_port()
    server = Serve(host="127.0.0.1", port=port, device="cpu", log_level="error", non_blocking=True)
    manager = server._model_manager
    named = manager.process_model_name(NAME)
    manager.loaded_models[named] = TimedModel(model, timeout_seconds=3600, processor=_processor(assistant))
    try:
        _wait_for(port)
        yield port
    finally:
        manager.loaded_models.pop(named).delete_model()
        server.kill_server()


def _processor(assistant: Assistant) -> MllamaProcessor:
    """One tile of the encoder's size an image, with the encoder's own mean and deviation."""
    model: Any = assistant.model
    side, transform = model.config.vision_config.image_size, model.config.vision_config.transform
    images = MllamaImageProcessor(
        size={"height": side, "width": side},
        max_image_tiles=1,
        image_mean=transform["mean"],
        image_std=transform["std"],
    )
    tokenizer = copy.deepcopy(assistant.tokenizer)
    tokenizer.image_token = "<image>"
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    return MllamaProcessor(images, tokenizer, chat_template=CHAT.replace("image_token", "'<image>'"))


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


def _wait_for(port: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"transformers' server did not listen within {seconds:.0f} s")
