"""The server process: a listening socket, limits on connections, and a shutdown that loses no answers.

uvicorn speaks HTTP. It limits neither the time a client takes to send the head of a request or to read its response,
nor the number of idle connections; `bounded_protocol` adds that.
"""

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from arlow_vl.serving.api import Api
from arlow_vl.serving.engine import Engine
from arlow_vl.serving.limits import ServerLimits
from arlow_vl.serving.listening import begin_to_listen
from arlow_vl.serving.refusals import Refusal
from arlow_vl.serving.replies import as_json

LINGER = 1.0  # seconds in which a refused client may still send; closing at once would lose the response
TICK = 0.05  # seconds between two checks of a server that starts or drains
FULL = Refusal(
    503,
    "the server has as many connections as it may; try again in a moment",
    None,
    "too_many_connections",
    Retry_After="1",
)
NO_HTTP = Refusal(400, "this is no request of HTTP/1.1; send one header Host, and a body as long as its header says")


class Server:
    """Runs an API until SIGTERM, SIGINT or `drain`; requests in progress then have `drain_seconds` to finish."""

    def __init__(
        self, api: Api, engine: Engine, listener: socket.socket, limits: ServerLimits, *, drain_seconds: float = 30
    ) -> None:
        self._api, self._engine, self._listener = api, engine, listener
        self._limits, self._drain_seconds = limits, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._uvicorn: Any = None
        self._draining: asyncio.Task | None = None

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serves until it is shut down; `on_ready` is called when clients can connect.

        Raises:
            ValueError: another program took the address while the model was loaded.
        """
        begin_to_listen(self._listener)
        with self._engine:
            try:
                asyncio.run(self._serve(on_ready))
            finally:
                self._api.close()

    def drain(self) -> None:
        """Begins the shutdown. Any thread may call it; the signals do."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin_draining)

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        import uvicorn

        self._loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            self._api,  # pyrefly: ignore[bad-argument-type]  # an ASGI application whose messages are plain dictionaries
            http=bounded_protocol(self._limits.max_connections, self._limits.read_seconds),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(max(1, self._limits.read_seconds)),
            timeout_graceful_shutdown=5,
        )
        self._uvicorn = uvicorn.Server(config)
        self._uvicorn.capture_signals = self._signals  # uvicorn's own would end the process by the signal, not with 0
        announcing = self._loop.create_task(self._announce(on_ready))
        await self._uvicorn.serve(sockets=[self._listener])
        announcing.cancel()

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        while not self._uvicorn.started:
            await asyncio.sleep(TICK)
        on_ready()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, lambda *_: self.drain()) for number in (signal.SIGTERM, signal.SIGINT)}
        # A client that closes while it is written to is an error of that write. The `arlow` command, for its output in
        # a pipe, lets this signal end the process.
        before[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _begin_draining(self) -> None:
        if self._draining is not None:
            self._drain_seconds = 0  # the second time
        else:
            self._api.is_draining = True
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        began = time.monotonic()
        while self._api.in_progress and time.monotonic() - began < self._drain_seconds:
            await asyncio.sleep(TICK)
        await asyncio.get_running_loop().run_in_executor(None, self._engine.stop)  # tells the clients that still wait
        self._uvicorn.should_exit = True


def _last_answer(refusal: Refusal) -> bytes:
    """Returns the bytes of a response that ends a connection before the application is called."""
    body = as_json(refusal.body())
    length = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in (length | refusal.headers).items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def bounded_protocol(max_connections: int, seconds: float) -> type[asyncio.Protocol]:
    """Returns uvicorn's HTTP/1.1 protocol with limits on connections.

    A connection over `max_connections` gets a 503 and is closed. One that takes more than `seconds` to send the head of
    a request, or to read what was written to it, is cut off.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class BoundedProtocol(H11Protocol):
        is_over = False
        head_timer: asyncio.TimerHandle | None = None
        write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.write(_last_answer(FULL))
                transport.close()
            else:
                self.await_head()

        def data_received(self, data: bytes) -> None:
            if not self.is_over:
                super().data_received(data)
                self.await_head()

        def send_400_response(self, msg: str) -> None:
            """Answers what is not HTTP in JSON; uvicorn's own answer is plain text."""
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                self.transport.write(_last_answer(NO_HTTP))
            self.is_over = True
            if self.cycle is not None:  # as when a client leaves: nothing may be written after the end
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.abort)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.await_head()

        def await_head(self) -> None:
            """Keeps the timer running from the end of one request until the whole head of the next has come."""
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if is_answering and self.head_timer is not None:
                self.head_timer.cancel()
                self.head_timer = None
            elif not is_answering and self.head_timer is None:
                self.head_timer = self.loop.call_later(seconds, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.write_timer = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.write_timer is not None:
                self.write_timer.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self.head_timer, self.write_timer):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

    return BoundedProtocol
