"""A server on a free port, run by a thread of the test."""

import base64
import contextlib
import http.client
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from arlow_vl.serving.api import Api
from arlow_vl.serving.assistant import Assistant
from arlow_vl.serving.engine import Engine
from arlow_vl.serving.limits import ServerLimits
from arlow_vl.serving.listening import listen
from arlow_vl.serving.server import Server
from tests.serving.tiny_assistants import picture


@dataclass
class Live:
    server: Server
    api: Api
    engine: Engine
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: bytes | dict | None = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of one request; a dictionary is sent as JSON."""
        status, _, answer = self.fetch(method, path, body, **headers)
        return status, json.loads(answer or b"{}")

    def fetch(
        self, method: str, path: str, body: bytes | dict | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (in lower case) and body of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, told, answer.read()
        finally:
            connection.close()

    def chat(self, content: Any = "the cat sat", **options: Any) -> tuple[int, dict[str, Any]]:
        messages = [{"role": "user", "content": content}]
        return self.ask("POST", "/v1/chat/completions", {"model": "arlow", "messages": messages, **options})


class Faults(logging.Handler):
    """What the server's library logs as an error: an exception that nobody took."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@contextlib.contextmanager
def live(
    assistant: Assistant,
    *,
    api_key: str | None = None,
    limits: ServerLimits | None = None,
    max_batch: int = 8,
    max_waiting: int = 8,
    drain_seconds: float = 10,
    has_page: bool = False,
) -> Iterator[Live]:
    limits = limits or ServerLimits(max_new_tokens=100, read_seconds=20)
    engine = Engine(assistant, max_batch=max_batch, max_waiting=max_waiting)
    api = Api(assistant, engine, api_key=api_key, limits=limits, has_page=has_page)
    server = Server(api, engine, listen("127.0.0.1", 0), limits, drain_seconds=drain_seconds)
    faults, log = Faults(), logging.getLogger("uvicorn.error")
    log.addHandler(faults)
    is_ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(is_ready.set,), daemon=True)
    thread.start()
    assert is_ready.wait(30)
    try:
        yield Live(server, api, engine, thread)
    finally:
        if thread.is_alive():
            server.drain()
            thread.join(30)
        log.removeHandler(faults)
        assert not thread.is_alive(), "the server did not end"
    assert not faults.messages, faults.messages


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(source: bytes | str) -> dict[str, Any]:
    url = source if source.startswith("data:") else data_url(picture(source))
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
