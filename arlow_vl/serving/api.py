"""The server's endpoints as an ASGI application: OpenAI's completions, and heat maps, on one engine."""

import asyncio
import contextlib
import copy
import functools
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from arlow_vl.serving.assistant import Assistant
from arlow_vl.serving.engine import MESSAGES, Busy, Engine, Stopping
from arlow_vl.serving.events import Done, Event, Failed, Fault, Finished, Piece
from arlow_vl.serving.exchange import ClientGone, Exchange, HeldBytes, Receive, Send
from arlow_vl.serving.heat import HeatMaps
from arlow_vl.serving.jobs import Job
from arlow_vl.serving.limits import DEFAULT_SERVER_LIMITS, ServerLimits
from arlow_vl.serving.listening import is_loopback
from arlow_vl.serving.memory import give_back
from arlow_vl.serving.page.files import page_files
from arlow_vl.serving.refusals import Refusal
from arlow_vl.serving.replies import DONE, Reply, as_event, as_json
from arlow_vl.serving.requests import HeatRequest, Request, RequestReader

logger = logging.getLogger(__name__)

LARGE_BODY = 2**20  # bytes of a request after which freed memory is returned to the system
TRIM_SECONDS = 1.0  # from a large request's end, so that one call serves for many
READERS = 2  # threads that decode images and encode text; also the most images held decoded at once
STATUS: dict[Fault, int] = {"late": 504, "stopped": 503, "model": 500, "request": 400}
Read = TypeVar("Read")
Give = Callable[[Exchange, Read, asyncio.Task, float], Awaitable[None]]


class Api:
    """Answers HTTP requests. Its methods run in the event loop."""

    def __init__(
        self,
        assistant: Assistant,
        engine: Engine,
        *,
        name: str = "arlow",
        api_key: str | None = None,
        limits: ServerLimits = DEFAULT_SERVER_LIMITS,
        has_page: bool = False,
    ) -> None:
        """`name` is the model's name for clients; `has_page` serves the demo page at `/`. Without `api_key`, only
        requests to a loopback name, and none from a page of another site, are answered: see `_check_origin`."""
        self._engine, self.name, self._limits = engine, name, limits
        self._tokenizer = copy.deepcopy(assistant.tokenizer)  # the reader's threads use the assistant's own
        self._heat_maps = HeatMaps(assistant, self._tokenizer)
        self._sees_images, self._page = assistant.sees_images, page_files() if has_page else {}
        self._reader = RequestReader(assistant, name, limits)
        self._key = None if api_key is None else _digest(api_key)
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._held = HeldBytes()
        self._created = int(time.time())
        self._is_giving_back = False
        self.in_progress = 0
        """Requests that are being read or answered."""
        self.is_draining = False
        """True: requests in progress finish, new ones are refused."""
        self._routes: dict[str, tuple[str, Callable[[Exchange], Any]]] = {
            "/health": ("GET", self._health),
            "/v1/models": ("GET", self._models),
            f"/v1/models/{name}": ("GET", self._model),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completion),
            "/v1/heat": ("POST", self._heat),
        }
        if has_page:
            self._routes |= dict.fromkeys(self._page, ("GET", self._page_file))
            self._routes["/settings"] = ("GET", self._settings)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        exchange = Exchange(scope, receive, send)
        self.in_progress += 1
        try:
            await self._answer(exchange)
        except ClientGone:
            pass
        except Refusal as refusal:
            await exchange.reply(refusal.status, refusal.body(), refusal.headers)
        except Exception:  # a bug of ours: the client gets an error too, the log has the traceback
            logger.exception("a request failed")
            if not exchange.is_started:
                fault = Refusal(500, "the server failed to answer; its log has the reason")
                await exchange.reply(fault.status, fault.body())
        finally:
            self.in_progress -= 1

    async def _answer(self, exchange: Exchange) -> None:
        self._check_origin(exchange)
        if exchange.path not in self._routes:
            raise Refusal(404, "there is nothing at this address; see /v1/models and /v1/chat/completions")
        method, handle = self._routes[exchange.path]
        if exchange.method != method and not (exchange.method == "HEAD" and method == "GET"):
            raise Refusal(405, f"this address takes {method}, got {exchange.method[:20]}", Allow=method)
        if exchange.path != "/health" and exchange.path not in self._page:
            self._check_key(exchange)
        await handle(exchange)

    def _check_origin(self, exchange: Exchange) -> None:
        """Refuses what a web page of another site may cause: Host shows a foreign name that was bound to this machine's
        address, Origin shows the page. Raises Refusal."""
        if self._key is not None:
            return
        host = exchange.headers.get("host", "localhost").lower()
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if not is_loopback(name.strip("[]")):  # unlike a name, an address cannot be bound to another one
            raise Refusal(403, "without an API key the server answers to localhost alone; start it with --api-key")
        origin = exchange.headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Refusal(
                403, "without an API key the server answers to no page of another site; start it with --api-key"
            )

    def _check_key(self, exchange: Exchange) -> None:
        if self._key is None:
            return
        scheme, _, key = exchange.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self._key):
            message = "the API key is wrong or missing; send the server's as 'Authorization: Bearer KEY'"
            raise Refusal(401, message, code="invalid_api_key", WWW_Authenticate="Bearer")

    async def _health(self, exchange: Exchange) -> None:
        running, waiting = self._engine.load
        status = "draining" if self.is_draining else "ok"
        await exchange.reply(
            503 if self.is_draining else 200, {"status": status, "running": running, "waiting": waiting}
        )

    async def _models(self, exchange: Exchange) -> None:
        await exchange.reply(200, {"object": "list", "data": [self._description()]})

    async def _model(self, exchange: Exchange) -> None:
        await exchange.reply(200, self._description())

    def _description(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._created, "owned_by": "arlow"}

    async def _page_file(self, exchange: Exchange) -> None:
        file = self._page[exchange.path]
        await exchange.reply_bytes(200, file.body, file.content_type, file.headers)

    async def _settings(self, exchange: Exchange) -> None:
        """Sends the settings that the page needs."""
        limits = self._limits
        most = {"max_images": limits.max_images, "max_tokens": limits.max_new_tokens, "max_body": limits.max_body_bytes}
        await exchange.reply(200, {"model": self.name, "sees_images": self._sees_images, **most})

    async def _chat(self, exchange: Exchange) -> None:
        await self._serve(exchange, self._reader.chat, functools.partial(self._give, is_chat=True))

    async def _completion(self, exchange: Exchange) -> None:
        await self._serve(exchange, self._reader.completion, functools.partial(self._give, is_chat=False))

    async def _heat(self, exchange: Exchange) -> None:
        await self._serve(exchange, self._reader.heat, self._give_heat)

    async def _serve(self, exchange: Exchange, read: Callable[[bytes], Read], give: Give[Read]) -> None:
        """Reads a body within the limits and answers it, as long as the client is connected."""
        deadline = time.monotonic() + self._limits.request_seconds
        self._check_readiness()
        kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "the body must be JSON; send it with content-type application/json")
        body = await exchange.body(self._limits, self._held)
        size = len(body)
        gone = asyncio.create_task(exchange.gone())
        try:
            request = await self._in_pool(functools.partial(read, body), gone, deadline)
            del body
            await give(exchange, request, gone, deadline)
        finally:
            gone.cancel()
            self._held.bytes -= size
            if size > LARGE_BODY and not self._is_giving_back:
                self._is_giving_back = True
                asyncio.get_running_loop().call_later(TRIM_SECONDS, self._give_back_memory)

    def _give_back_memory(self) -> None:
        self._is_giving_back = False
        asyncio.get_running_loop().run_in_executor(None, give_back)

    def _check_readiness(self) -> None:
        if self.is_draining:
            raise _stopping()
        if self._engine.is_full:
            raise _busy()

    async def _in_pool(self, do: Callable[[], Read], gone: asyncio.Task, deadline: float) -> Read:
        """Runs `do` in a reader's thread. Raises Refusal at the deadline, and ClientGone when the client has left."""
        reading = asyncio.get_running_loop().run_in_executor(self._pool, do)
        left = deadline - time.monotonic()
        await asyncio.wait({reading, gone}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        reading.cancel()
        if gone.done():
            raise ClientGone
        raise Refusal(504, MESSAGES["late"])

    async def _give(
        self, exchange: Exchange, request: Request, gone: asyncio.Task, deadline: float, *, is_chat: bool
    ) -> None:
        has_logprobs, has_ids = request.top_logprobs is not None, request.has_token_ids
        reply = Reply(self.name, self._tokenizer, is_chat=is_chat, has_logprobs=has_logprobs, has_token_ids=has_ids)
        submit = functools.partial(
            self._engine.submit,
            request.prompt,
            request.decoding,
            seconds=deadline - time.monotonic(),
            top_logprobs=0 if has_ids and not has_logprobs else request.top_logprobs,
        )
        with _asked(submit, gone) as events:
            if request.is_stream:
                await _stream(exchange, reply, events, includes_usage=request.includes_usage)
            else:
                await _whole(exchange, reply, events)

    async def _give_heat(self, exchange: Exchange, request: HeatRequest, gone: asyncio.Task, deadline: float) -> None:
        look = functools.partial(self._heat_maps.look, request)
        submit = functools.partial(self._engine.submit_work, look, seconds=deadline - time.monotonic())
        with _asked(submit, gone) as events:
            heat = (await anext(events)).value
        body = await self._in_pool(lambda: as_json(self._heat_maps.describe(request, heat)), gone, deadline)
        await exchange.reply_bytes(200, body, "application/json")

    def close(self) -> None:
        """Stops the threads that read requests."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _asked(submit: Callable[..., Job], gone: asyncio.Task) -> Iterator[AsyncIterator[Any]]:
    """Submits a request to the engine, gives its events, and cancels it at the end. Raises Refusal."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | None]()
    try:
        asked = submit(deliver=lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
    except Busy:
        raise _busy() from None
    except Stopping:
        raise _stopping() from None
    gone.add_done_callback(lambda _: events.put_nowait(None))
    try:
        yield _events(events)
    finally:
        asked.cancel()


async def _events(events: "asyncio.Queue[Event | None]") -> AsyncIterator[Any]:
    """Yields the pieces and the end of an answer, or the result of work.

    Raises:
        Refusal: the request failed.
        ClientGone: the client has left.
    """
    while True:
        event = await events.get()
        if event is None:
            raise ClientGone
        if isinstance(event, Failed):
            raise Refusal(STATUS[event.fault], event.message)
        yield event
        if isinstance(event, Finished | Done):
            return


async def _whole(exchange: Exchange, reply: Reply, events: AsyncIterator[Piece | Finished]) -> None:
    pieces: list[Piece] = []
    async for event in events:
        if isinstance(event, Finished):
            await exchange.reply(200, reply.whole(pieces, event))
        else:
            pieces.append(event)


async def _stream(
    exchange: Exchange, reply: Reply, events: AsyncIterator[Piece | Finished], *, includes_usage: bool
) -> None:
    """Sends server-sent events. The status waits for the first one; a later failure is sent as an event."""
    event = await anext(events)
    await exchange.start(200, {"content-type": "text/event-stream", "cache-control": "no-cache"})
    if (first := reply.first_chunk()) is not None:
        await exchange.write(as_event(first))
    try:
        while not isinstance(event, Finished):
            await exchange.write(as_event(reply.chunk(event)))
            event = await anext(events)
    except Refusal as refusal:
        await exchange.write(as_event(refusal.body()) + DONE, is_last=True)
        return
    last = as_event(reply.last_chunk(event)) + (as_event(reply.usage_chunk(event)) if includes_usage else b"")
    await exchange.write(last + DONE, is_last=True)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _busy() -> Refusal:
    return Refusal(429, "the queue of requests is full; try again in a moment", code="queue_full", Retry_After="1")


def _stopping() -> Refusal:
    return Refusal(503, "the server is shutting down and takes no more requests", Retry_After="5", Connection="close")
