"""Communication among the processes of a run, besides gradients. With one process every function is the identity.

It uses gloo, between hosts, so no step waits for a device because of it.
"""

import contextlib
import datetime
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from arlow_vl.printing import print_line
from arlow_vl.training.launch import LOST, ProcessRank, end_with_starter
from arlow_vl.training.settings import EngineConfig

JOIN_SECONDS = 300
"""Time in which all processes of a run must have started."""
PREPARING_DAYS = 7
"""Time that the others wait for the first process, which tokenises, indexes and encodes for all."""
READING_SECONDS = 30
"""Time that the first process waits until the others have read its message."""
SILENCE_MINUTES = 60
"""Time without communication during a run after which another process counts as lost."""
PORT = "29500"


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def data_rank(engine: EngineConfig) -> tuple[int, int]:
    """Returns the number of this process among those that read different batches, and how many of these there are.

    The processes of a tensor-parallel group have consecutive ranks and read the same batches.
    """
    return (dist.get_rank() // engine.tensor_parallel, engine.data_ranks) if dist.is_initialized() else (0, 1)


@contextlib.contextmanager
def joined(place: ProcessRank, device_type: str, *, seconds: int = JOIN_SECONDS) -> Iterator[None]:
    """Connects the processes of a run while it lasts; only the first one prints.

    Raises:
        ValueError: not all processes have joined within `seconds`.
    """
    if place.world_size == 1:
        had_group = dist.is_initialized()
        try:
            yield
        finally:
            if dist.is_initialized() and not had_group:  # made by the device mesh of a sharded run on one device
                dist.destroy_process_group()
        return
    end_with_starter()
    store = _meet(place, seconds)
    dist.init_process_group(
        "gloo" if device_type == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore("arlow", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=datetime.timedelta(minutes=SILENCE_MINUTES),
    )
    if device_type == "cuda":
        torch.cuda.set_device(place.local_rank)
    try:
        with _silent(not place.is_first), _reporting_failures(place):
            yield
    finally:
        dist.destroy_process_group()


def _meet(place: ProcessRank, seconds: int) -> Any:
    """Returns the store of the run once all processes have joined it. Raises ValueError if some do not in time."""
    address = os.environ.get("MASTER_ADDR") or "localhost"
    port = os.environ.setdefault("MASTER_PORT", PORT)
    os.environ["MASTER_ADDR"] = address
    limit = datetime.timedelta(seconds=seconds)
    try:
        _wait_until_there(place, address, int(port), seconds)
        store, _, _ = next(dist.rendezvous("env://", rank=place.rank, world_size=place.world_size, timeout=limit))
        store.set_timeout(limit)
    except (RuntimeError, OSError, ValueError) as error:  # DistNetworkError, DistStoreError
        if came := re.search(r"(\d+)/\d+ clients joined", str(error)):
            raise ValueError(
                f"only {came[1]} of {place.world_size} processes joined {address}:{port} within {seconds} seconds; "
                "start as many as run.engine.devices x nodes says"
            ) from error
        raise ValueError(
            f"rank {place.rank} cannot reach the run's meeting place {address}:{port} within {seconds} seconds "
            f"({str(error).splitlines()[0][:200]}); is the first process running there, and is the port open?"
        ) from error
    store.set(f"arlow/came/{place.rank}", "")
    names = [f"arlow/came/{rank}" for rank in range(place.world_size)]
    try:
        store.wait(names, limit)
    except (RuntimeError, OSError) as error:
        with contextlib.suppress(RuntimeError, OSError):
            missing = [str(rank) for rank, name in enumerate(names) if not store.check([name])]
            raise ValueError(
                f"of {place.world_size} processes, rank {', '.join(missing)} did not come within {seconds} seconds; "
                "start as many as run.engine.devices x nodes says"
            ) from error
        raise ValueError(f"the meeting place {address}:{port} was closed while this process waited") from error
    return store


def _wait_until_there(place: ProcessRank, address: str, port: int, seconds: int) -> None:
    """Waits until the first process answers. Raises OSError if it does not, without torch's stack traces."""
    hosts = place.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    end = time.monotonic() + seconds
    while True:
        try:
            if hosts:
                socket.getaddrinfo(address, port)
            else:
                socket.create_connection((address, port), timeout=max(0.1, end - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def _silent(is_silent: bool) -> Iterator[None]:
    if not is_silent:
        yield
        return
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


@contextlib.contextmanager
def _reporting_failures(place: ProcessRank) -> Iterator[None]:
    """Reports an error of several processes once: the first process does if it has the same, else this one.

    A process that only lost the connection to another one ends with `LOST`.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if _is_lost_peer(error):
            if place.is_first:
                print_line("arlow: another process of the run has ended, so this one ends too", file=sys.stderr)
            raise SystemExit(LOST) from error
        status = getattr(error, "exit_code", 2 if isinstance(error, ValueError) else None)
        _say_failure(place, str(error))
        if place.is_first or status is None:
            raise
        if not _first_says(str(error)):
            print_line(f"arlow: rank {place.rank}: {' '.join(str(error).split())}", file=sys.__stderr__)
        raise SystemExit(status) from error


def _is_lost_peer(error: BaseException) -> bool:
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "ncclRemoteError")
    return type(error) in (RuntimeError, dist.DistBackendError) and any(word in str(error) for word in words)


def _say_failure(place: ProcessRank, sentence: str) -> None:
    with contextlib.suppress(RuntimeError):
        dist.distributed_c10d._get_default_store().set(f"failed/{place.rank}", sentence)


def _first_says(sentence: str) -> bool:
    """Returns True if the first process fails with the same sentence within a few seconds."""
    with contextlib.suppress(RuntimeError, OSError):
        store = dist.distributed_c10d._get_default_store()
        store.wait(["failed/0"], datetime.timedelta(seconds=3))
        return store.get("failed/0").decode() == sentence
    return False


def first_prepares(what: str, prepare: Callable[[], Any]) -> Any:
    """Calls `prepare` on the first process alone and returns its result (JSON values) on all of them.

    `what` is a name that is used once in a run. The other processes wait, however long it takes. If `prepare` raises,
    they end silently with its exit status.
    """
    if world_size() == 1:
        return prepare()
    store = dist.distributed_c10d._get_default_store()
    name = f"prepared/{what}"
    if is_first():
        try:
            result = prepare()
        except BaseException as error:
            status = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 2)
            _send(store, name, {"status": status})
            raise
        _send(store, name, {"result": result})
        return result
    try:
        store.wait([name], datetime.timedelta(days=PREPARING_DAYS))
        message = json.loads(store.get(name))
        store.set(f"{name}/read/{dist.get_rank()}", "")
    except (RuntimeError, OSError) as error:  # the store ended with the first process
        raise SystemExit(LOST) from error
    if "status" in message:
        raise SystemExit(message["status"])
    return message["result"]


def _send(store: Any, name: str, message: dict[str, Any]) -> None:
    """Sends a message and waits until all have read it, as the store ends with the first process."""
    store.set(name, json.dumps(message))
    with contextlib.suppress(RuntimeError, OSError):  # a lost process is reported elsewhere
        readers = [f"{name}/read/{rank}" for rank in range(1, world_size())]
        store.wait(readers, datetime.timedelta(seconds=READING_SECONDS))


def gathered(value: Any) -> list[Any]:
    """Returns the values (plain or tensors) of all processes, in the order of ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def largest(number: int) -> int:
    """Returns the maximum over all processes."""
    if world_size() == 1:
        return number
    largest_number = torch.tensor(number)
    dist.all_reduce(largest_number, dist.ReduceOp.MAX)
    return int(largest_number)


def summed(numbers: Tensor) -> Tensor:
    """Returns the sum over all processes, on the device of the numbers."""
    if world_size() == 1:
        return numbers
    total = numbers.clone()
    dist.all_reduce(total)
    return total


def whole(tensor: Tensor) -> Tensor:
    """Gathers a tensor if it is sharded; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Returns the local shard of a tensor without copying it; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
