"""A pool of processes that reads ahead: tasks go in, their results come out in the same order, whatever happens.

Workers are forked, which is safe on Linux alone. They share the index and the tokenizer with the process that trains,
start in milliseconds and need no pickling of data sets, where a spawned one would import torch for seconds. They use
one thread and no device. A worker's result lies in memory of its own (memfd) that is mapped here, not copied: one copy
in all. The kernel frees it with its last user, so that a kill leaves nothing behind.
"""

import collections
import contextlib
import gc
import io
import logging
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any

from arlow_vl.data.heartbeat import BEAT
from arlow_vl.data.processes import end_with, portable
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

logger = logging.getLogger(__name__)

HANG_SECONDS = 120.0
"""Seconds after which a worker busy with one item is replaced, unless bytes of that item are still arriving."""
TASKS_AHEAD = 3
"""Tasks that a worker has at once: one that it reads, one to read next, one whose result waits to be taken."""
KEY_BYTES = 1024

At = Callable[[str], None]
"""Called with the key of each item before it is read, so that an error can name where a worker died."""
Read = Callable[[Any, At], Any]
_HEADER = struct.Struct("<QQ?")  # a result: number of the task, bytes, whether it is an error


class Pool:
    """Maps tasks to `read(task, at)`, in order, by `workers` processes; 0: in this process.

    Tasks are read at most `TASKS_AHEAD` a worker before their results are taken. What `read` raises is raised here, at
    its task. A worker that dies or hangs is replaced and its tasks are read again.

    Raises:
        DataError: a task has killed, or hung, two workers.
    """

    def __init__(self, read: Read, *, workers: int, hang_seconds: float = HANG_SECONDS) -> None:
        self.read = read
        self.hang_seconds = hang_seconds
        self.workers: list[Worker] = []
        self._sent = 0
        self._done: dict[int, tuple[bool, Any]] = {}
        """Results by task number: (True: it is an error, the result)."""
        self._faults: dict[int, str] = {}
        """Sentences, by task number, about a worker that died or hung at the task."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for number in range(workers):
                self.workers.append(Worker(read, number, self.workers))
            stack.pop_all()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers at once."""
        for worker in self.workers:
            worker.kill()
        self.workers = []

    def results(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yields the result of each task, in order."""
        if not self.workers:
            yield from (self.read(task, _nowhere) for task in tasks)
            return
        coming, under_way = iter(tasks), collections.deque[int]()
        while True:
            for task in islice(coming, len(self.workers) * TASKS_AHEAD - len(under_way)):
                under_way.append(self._send(task))
            if not under_way:
                return
            yield self._take(under_way.popleft())

    def begin(self, task: Any) -> Callable[[], Any]:
        """Starts a task and returns a function that waits for its result; without workers it computes it."""
        if not self.workers:
            return lambda: self.read(task, _nowhere)
        number = self._send(task)
        return lambda: self._take(number)

    def _send(self, task: Any) -> int:
        self._sent += 1
        min(self.workers, key=lambda worker: len(worker.tasks)).send(self._sent, task)
        return self._sent

    def _take(self, number: int) -> Any:
        while number not in self._done:
            self._wait()
        is_error, result = self._done.pop(number)
        if is_error:
            raise result
        return result

    def _wait(self) -> None:
        """Takes the results that have come, and replaces a worker that is dead or hangs."""
        poll = select.poll()  # select() takes no descriptors over 1,024, and each batch in use has one
        of = {worker.socket.fileno(): worker for worker in self.workers}
        for descriptor in of:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(min(self.hang_seconds / 4, 1.0) * 1000):
            worker = of[descriptor]
            try:
                number, is_error, result = worker.receive()
            except (EOFError, OSError):
                self._replace(worker, worker.died())
                continue
            self._done[number] = is_error, result
            return
        for worker in self.workers:
            if worker.tasks and worker.idle_seconds() > self.hang_seconds:
                self._replace(worker, f"was busy for over {self.hang_seconds:g} s")

    def _replace(self, worker: "Worker", what: str) -> None:
        worker.kill()
        where = f" at {visible(worker.key)}" if worker.key else ""
        sentence = f"a process that reads data {what}{where}"
        first = next(iter(worker.tasks), None)
        tasks, index = dict(worker.tasks), self.workers.index(worker)
        if first is not None and first in self._faults:
            advice = "look at that sample, at the memory of the machine, and try run.workers 0"
            self._done[first] = True, DataError(f"{sentence}, for the second time; {advice}")
            del tasks[first]
        elif first is not None:
            self._faults[first] = sentence
        if first not in self._done:
            logger.warning(f"{sentence}; another one reads it again")
        others = [other for other in self.workers if other is not worker]
        self.workers[index] = Worker(self.read, worker.number, others)
        for number, task in tasks.items():
            self.workers[index].send(number, task)


class Worker:
    """A worker process with its tasks and the connection to it."""

    def __init__(self, read: Read, number: int, others: Iterable["Worker"]) -> None:
        self.number = number
        self.tasks: dict[int, Any] = {}
        """Tasks by number, the oldest first, which is the one that it is reading."""
        self.sent_at = 0.0
        self.status = mmap.mmap(-1, 8 + KEY_BYTES)  # shared: when it began with which key
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(HANG_SECONDS)
        inherited = [self.socket, *(other.socket for other in others)]
        context = multiprocessing.get_context("fork")
        self.process: BaseProcess = context.Process(
            target=_serve,
            args=(read, theirs, inherited, self.status, os.getpid()),
            daemon=True,
            name=f"arlow-data-{number}",
        )
        self.process.start()
        theirs.close()

    @property
    def key(self) -> str:
        return self.status[8:].split(b"\0", 1)[0].decode(errors="replace")

    def idle_seconds(self) -> float:
        """Seconds since it began an item, received bytes for it, or was given a task or gave a result."""
        return time.monotonic() - max(self.sent_at, struct.unpack_from("<d", self.status)[0])

    def send(self, number: int, task: Any) -> None:
        """Sends a task. That a worker is dead is no error here, but in `receive`."""
        self.tasks[number] = task
        self.sent_at = time.monotonic()
        message = pickle.dumps((number, task))
        with contextlib.suppress(OSError):
            self.socket.sendall(struct.pack("<Q", len(message)) + message)

    def receive(self) -> tuple[int, bool, Any]:
        """Returns the next result: number, True for an error, value. Raises EOFError if the worker is dead."""
        header, descriptors, _, _ = socket.recv_fds(self.socket, _HEADER.size, 1)
        if len(header) < _HEADER.size or not descriptors:
            raise EOFError
        number, size, is_error = _HEADER.unpack(header)
        try:
            content = mmap.mmap(descriptors[0], size)
        finally:
            os.close(descriptors[0])
        del self.tasks[number]
        self.sent_at = time.monotonic()
        return number, is_error, _unpacked(memoryview(content))

    def died(self) -> str:
        """Describes how the worker ended: `died (SIGKILL)`."""
        self.process.join(1)
        code = self.process.exitcode
        return f"died ({signal.Signals(-code).name if code and code < 0 else f'exit status {code}'})"

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.socket.close()


def _serve(
    read: Read, connection: socket.socket, inherited: Iterable[socket.socket], status: mmap.mmap, parent: int
) -> None:
    """Runs a worker until the other side is closed or the process that forked it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the process that trains decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with(parent)
    gc.freeze()  # a collection would touch, and so copy, every object that was shared
    for other in inherited:
        other.close()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # OpenMP's threads were not forked
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # nor those of the tokenizers

    def goes_on() -> None:
        struct.pack_into("<d", status, 0, time.monotonic())

    def at(key: str) -> None:
        encoded = key.encode(errors="replace")[: KEY_BYTES - 1]
        status[8 : 9 + len(encoded)] = encoded + b"\0"
        goes_on()

    BEAT.set(goes_on)

    while message := _message(connection):
        number, task = pickle.loads(message)
        at("")
        try:
            is_error, (descriptor, size) = False, _packed(read(task, at))
        except Exception as error:  # it is raised where the result is awaited
            is_error, (descriptor, size) = True, _packed(portable(error))
        try:
            socket.send_fds(connection, [_HEADER.pack(number, size, is_error)], [descriptor])
        except OSError:
            return
        finally:
            os.close(descriptor)


def _message(connection: socket.socket) -> bytes:
    """Returns the next task as bytes; empty when there will be none."""
    length = _exactly(connection, 8)
    return _exactly(connection, struct.unpack("<Q", length)[0]) if length else b""


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = connection.recv(min(count, 2**20))
        except ConnectionError:  # the other side is gone and left results in the connection
            part = b""
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class _Pickler(pickle.Pickler):
    """Pickler that writes tensors as numpy arrays, whose bytes are kept out of the pickle."""

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or type(value) is not torch.Tensor or value.device.type != "cpu":
            return NotImplemented
        plain = value.detach().contiguous()
        if plain.dtype == torch.bfloat16:  # numpy has none
            return _bfloat16, (plain.view(torch.int16).numpy(),)
        return torch.from_numpy, (plain.numpy(),)


def _bfloat16(values: Any) -> Any:
    import torch

    return torch.from_numpy(values).view(torch.bfloat16)


def _packed(value: Any) -> tuple[int, int]:
    """Writes a value into a memory file: the number of its parts, their sizes, the parts. The first part is the pickle;
    returns the descriptor and the bytes."""
    buffers: list[pickle.PickleBuffer] = []
    with io.BytesIO() as stream:
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
        parts = [memoryview(stream.getvalue()), *(buffer.raw() for buffer in buffers)]
    sizes = [part.nbytes for part in parts]
    places = _places(sizes)
    total = places[-1] + sizes[-1]
    descriptor = os.memfd_create("arlow-batch", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, total)
    with mmap.mmap(descriptor, total) as content:
        struct.pack_into(f"<Q{len(sizes)}Q", content, 0, len(sizes), *sizes)
        for place, part in zip(places, parts, strict=True):
            content[place : place + part.nbytes] = part
    return descriptor, total


def _unpacked(content: memoryview) -> Any:
    """Returns the value, whose arrays lie in `content` and keep it alive."""
    (count,) = struct.unpack_from("<Q", content)
    sizes = struct.unpack_from(f"<{count}Q", content, 8)
    pickled, *buffers = (content[place : place + size] for place, size in zip(_places(sizes), sizes, strict=True))
    return pickle.loads(pickled, buffers=buffers)


def _places(sizes: Any) -> list[int]:
    """Returns where each part begins: at multiples of 64 bytes, as aligned arrays are faster."""
    places, end = [], 8 * (len(sizes) + 1)
    for size in sizes:
        places.append(-(-end // 64) * 64)
        end = places[-1] + size
    return places


def _nowhere(key: str) -> None:
    pass
