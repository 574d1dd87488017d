"""Slow, many and absent clients, and the end of the server: each costs what it may and no more."""

import json
import socket
import time

import pytest

from arlow_vl.serving import api
from arlow_vl.serving.api import Api
from arlow_vl.serving.engine import Engine
from arlow_vl.serving.limits import ServerLimits
from arlow_vl.serving.listening import begin_to_listen, listen
from arlow_vl.serving.server import Server
from tests.serving.live import Live, live
from tests.serving.tiny_assistants import text_assistant


@pytest.fixture(scope="module")
def assistant():
    return text_assistant()


def raw(running: Live, data: bytes, seconds: float) -> bytes:
    """What comes back until the server closes, or for so many seconds."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=seconds) as connection:
        connection.sendall(data)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except TimeoutError:
            received += b"<still open>"
        return received


def test_a_slow_head_is_cut_off_and_a_slow_body_is_told(assistant):
    with live(assistant, limits=ServerLimits(read_seconds=1)) as running:
        assert raw(running, b"GET /health HT", 10) == b""
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        answer = raw(running, head + b'Content-Length: 500\r\n\r\n{"model":', 10)
        assert answer.startswith(b"HTTP/1.1 408") and b"the body did not come within 1 seconds" in answer
        assert raw(running, b"no HTTP at all\r\n\r\n", 10).startswith(b"HTTP/1.1 400")
        assert running.ask("GET", "/health")[0] == 200


NO_HTTP = {
    "no HTTP": b"no HTTP at all\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
    "a length that is none": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
    "a huge header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    "a broken chunk, of what is refused unread": (
        b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    ),
    "a broken chunk": (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    ),
}


@pytest.mark.parametrize("case", NO_HTTP)
def test_what_is_no_http_is_refused_in_the_form_of_every_error(assistant, case):
    with live(assistant) as running:
        answer = raw(running, NO_HTTP[case], 10)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json"), answer
        error = json.loads(body)["error"]
        assert error["type"] == "invalid_request_error" and error["message"].startswith(
            "this is no request of HTTP/1.1"
        )
        assert running.ask("GET", "/health")[0] == 200


def test_memory_of_large_requests_is_given_back_once_for_many(assistant, monkeypatch):
    times = []
    monkeypatch.setattr(api, "give_back", lambda: times.append(time.monotonic()))
    monkeypatch.setattr(api, "TRIM_SECONDS", 2.0)
    with live(assistant) as running:
        assert running.chat("the cat", max_tokens=1)[0] == 200
        for _ in range(3):
            assert running.chat("a" * 2**21, max_tokens=1)[0] == 400
        assert until(lambda: times)
    assert len(times) == 1


def until(condition, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def begin(running: Live, **options) -> socket.socket:
    """A request whose answer nobody has read yet."""
    body = {"model": "arlow", "messages": [{"role": "user", "content": "the cat sat"}], "stream": True, **options}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    head += "Connection: close\r\n"
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=30)
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def slow_assistant():
    """Its answers do not end by themselves, and a token takes some time."""
    slow = text_assistant(max_position_embeddings=4096)
    slow.model.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    slow.stop_ids = frozenset()
    return slow


def test_a_client_that_goes_away_frees_its_slot(slow_assistant):
    with live(slow_assistant, max_batch=1, limits=ServerLimits()) as running:
        connection = begin(running, max_tokens=1000)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        waiting = begin(running, max_tokens=1000, stream=False)
        assert until(lambda: running.engine.load == (1, 1))
        waiting.close()
        assert until(lambda: running.engine.load == (1, 0))
        connection.close()
        assert until(lambda: running.engine.load == (0, 0))
        assert until(lambda: running.api.in_progress == 0)


def test_a_full_queue_is_told_with_when_to_come_back(slow_assistant):
    with live(slow_assistant, max_batch=1, max_waiting=1, limits=ServerLimits()) as running:
        held = [begin(running, max_tokens=1000)]
        assert until(lambda: running.engine.load == (1, 0))
        held.append(begin(running, max_tokens=1000))
        assert until(lambda: running.engine.load == (1, 1))
        status, answer = running.chat("a", max_tokens=2)
        assert status == 429 and answer["error"]["code"] == "queue_full"
        for connection in held:
            connection.close()
        assert until(lambda: running.engine.load == (0, 0))
        assert running.chat("a", max_tokens=2)[0] == 200


def test_a_request_that_takes_too_long_is_told(slow_assistant):
    with live(slow_assistant, limits=ServerLimits(request_seconds=0.5)) as running:
        status, answer = running.chat("a", max_tokens=1000)
        assert status == 504 and "within the time that a request may take" in answer["error"]["message"]
        with begin(running, max_tokens=1000) as connection:
            received = read_to_end(connection)
        assert received.startswith(b"HTTP/1.1 200") and b"within the time" in received and b"[DONE]" in received


def test_draining_ends_what_runs_and_refuses_what_comes(slow_assistant):
    with live(slow_assistant, limits=ServerLimits()) as running:
        connection = begin(running, max_tokens=100)
        assert until(lambda: running.engine.load == (1, 0))
        running.server.drain()
        assert until(lambda: running.api.is_draining)
        status, answer = running.chat("a", max_tokens=2)
        assert status == 503 and "is shutting down and takes no more requests" in answer["error"]["message"]
        assert running.ask("GET", "/health")[1]["status"] == "draining"
        received = read_to_end(connection)
        assert b'"finish_reason": "length"' in received and b"[DONE]" in received
        running.thread.join(10)
        assert not running.thread.is_alive()


def test_draining_tells_answers_that_outlast_it(slow_assistant):
    with live(slow_assistant, limits=ServerLimits(), drain_seconds=0.3) as running:
        connection = begin(running, max_tokens=1000)
        assert until(lambda: running.engine.load == (1, 0))
        running.server.drain()
        assert b"the server is shutting down and ended this answer" in read_to_end(connection)
        running.thread.join(10)
        assert not running.thread.is_alive()


def test_one_connection_too_many_is_told(assistant):
    with live(assistant, limits=ServerLimits(max_connections=2)) as running:
        held = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(2)]
        assert until(lambda: raw(running, b"", 5).startswith(b"HTTP/1.1 503"))
        for connection in held:
            connection.close()
        assert until(lambda: running.ask("GET", "/health")[0] == 200)


def test_damaged_weights_are_an_error_of_the_request_and_told_without_a_trace(caplog):
    broken = text_assistant()
    broken.model.lm_head.weight.data[5] = float("nan")
    with live(broken) as running:
        for _ in range(2):
            status, answer = running.chat("a", max_tokens=2)
            assert status == 500 and "the model could not write this answer" in answer["error"]["message"]
        assert running.ask("GET", "/health")[0] == 200


def test_of_two_servers_that_load_at_once_the_second_says_who_has_the_port(assistant):
    """Both may bind the address; one of them gets to listen there."""
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    second = listen("127.0.0.1", port)
    begin_to_listen(first)
    engine = Engine(assistant)
    server = Server(Api(assistant, engine), engine, second, ServerLimits())
    with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1 port {port}: another program listens there"):
        server.run()
    first.close()
    second.close()
