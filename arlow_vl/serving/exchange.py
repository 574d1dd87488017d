"""One HTTP exchange over ASGI: a request body read within limits, and a response sent whole or as events."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from arlow_vl.serving.limits import ServerLimits
from arlow_vl.serving.refusals import Refusal
from arlow_vl.serving.replies import as_json

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
IGNORED_BYTES, IGNORED_SECONDS = (
    64 * 2**20,
    5,
)  # of a refused body, which a client may send whole before it reads the response


class ClientGone(Exception):
    """The client has closed the connection."""


class HeldBytes:
    """The size of all bodies that are being read or answered; only the event loop changes it."""

    def __init__(self) -> None:
        self.bytes = 0


class Exchange:
    """A request and its response."""

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.method, self.path = scope["method"], scope["path"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._receive, self._send = receive, send
        self._body_is_read = self.method in ("GET", "HEAD")
        self._ignores_rest = True
        self.is_started = False
        """True once the head of a response was sent."""

    async def body(self, limits: ServerLimits, held: HeldBytes) -> bytes:
        """Returns the whole body. `held` grows by its length, which the caller subtracts afterwards.

        Raises:
            Refusal: it is too large or too slow, or too much is being read at once.
            ClientGone: the connection ended before the body.
        """
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > limits.max_body_bytes:
            raise _too_large(limits)
        chunks, size, is_taken = [], 0, False
        try:
            async with asyncio.timeout(limits.read_seconds):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    size, held.bytes = size + len(chunk), held.bytes + len(chunk)
                    self._body_is_read = not message.get("more_body", False)
                    if size > limits.max_body_bytes:
                        raise _too_large(limits)
                    if held.bytes > limits.max_held_bytes:
                        raise Refusal(429, "the server is reading other large requests; try again", Retry_After="1")
                    if self._body_is_read:
                        is_taken = True
                        return b"".join(chunks)
        except TimeoutError:
            self._ignores_rest = False  # it had its time
            message = f"the body did not come within {limits.read_seconds:g} seconds; send it faster, or a smaller one"
            raise Refusal(408, message) from None
        finally:
            if not is_taken:
                held.bytes -= size

    async def gone(self) -> None:
        """Returns when the client has left. The body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def reply(self, status: int, values: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        """Sends a whole response in JSON, as `reply_bytes` does."""
        await self.reply_bytes(status, as_json(values), "application/json", headers)

    async def reply_bytes(
        self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        """Sends a whole response. What is left of an unread body is read and dropped, within limits, as a client that
        sends all of it first would not get the response otherwise."""
        closes = {} if self._body_is_read else {"connection": "close"}
        length = {"content-type": content_type, "content-length": str(len(body))}
        await self.start(status, {**length, **closes, **(headers or {})})
        await self._send({"type": "http.response.body", "body": body, "more_body": not self._body_is_read})
        if not self._body_is_read:
            if self._ignores_rest:
                await self._ignore_body()
            await self._send({"type": "http.response.body", "body": b""})

    async def start(self, status: int, headers: dict[str, str]) -> None:
        """Sends the head of a response. `nosniff` keeps browsers from guessing another content type."""
        self.is_started = True
        headers = {"x-content-type-options": "nosniff", **headers}
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def _ignore_body(self) -> None:
        ignored, end = 0, time.monotonic() + IGNORED_SECONDS
        try:
            while ignored < IGNORED_BYTES:
                async with asyncio.timeout(max(end - time.monotonic(), 0.01)):
                    message = await self._receive()
                ignored += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
        except TimeoutError:
            return


def _too_large(limits: ServerLimits) -> Refusal:
    return Refusal(413, f"the body is over {limits.max_body_bytes:,} bytes, which is the limit; send smaller images")
