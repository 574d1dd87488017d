"""What the processes of a run say to each other, beside gradients. With one process every function is the identity.

It goes over gloo, from host to host: no step waits for a device because of it.
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
from arlow_vl.training.launch import LOST, Place, end_with_starter
from arlow_vl.training.settings import EngineConfig

JOIN_SECONDS = 300
"""How long the processes of a run wait for each other to come."""
PREPARING_DAYS = 7
"""How long the others wait for the first process, which tokenises, indexes and encodes for all."""
READING_SECONDS = 30
"""How long the first process waits for the others to have read what it told them."""
SILENCE_MINUTES = 60
"""Without a word from another process in the middle of a run, after which it counts as lost."""
PORT = "29500"


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def data_rank(engine: EngineConfig) -> tuple[int, int]:
    """Which of the processes that read different batches this is, and how many there are.

    Those of a tensor-parallel group have numbers that follow each other, and read the same.
    """
    return (dist.get_rank() // engine.tensor_parallel, engine.data_ranks) if dist.is_initialized() else (0, 1)


@contextlib.contextmanager
def joined(place: Place, device_type: str, *, seconds: int = JOIN_SECONDS) -> Iterator[None]:
    """Around a run: the processes find each other, and the first alone prints.

    Raises:
        ValueError: not all have come in time.
    """
    if place.world_size == 1:
        had_group = dist.is_initialized()
        try:
            yield
        finally:
            if dist.is_initialized() and not had_group:  # of the mesh of one device that parts are laid out on
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
        with _silent(not place.is_first), _telling_failures(place):
            yield
    finally:
        dist.destroy_process_group()


def _meet(place: Place, seconds: int) -> Any:
    """The store of the run, once all processes have come to it."""
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
                f"of {place.world_size} processes {came[1]} came within {seconds} seconds to {address}:{port}; start "
                "as many as run.engine.devices x nodes says"
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


def _wait_until_there(place: Place, address: str, port: int, seconds: int) -> None:
    """Raises OSError where nobody answers: torch, asked first, prints stack traces of its own before it gives up."""
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
def _telling_failures(place: Place) -> Iterator[None]:
    """A user's error on another process than the first is told once: by the first if it has the same, else by that one.

    A process that only lost another ends with `LOST`.
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


def _say_failure(place: Place, sentence: str) -> None:
    with contextlib.suppress(RuntimeError):
        dist.distributed_c10d._get_default_store().set(f"failed/{place.rank}", sentence)


def _first_says(sentence: str) -> bool:
    """Whether the first process ends with the same sentence, which it may take a moment to find."""
    with contextlib.suppress(RuntimeError, OSError):
        store = dist.distributed_c10d._get_default_store()
        store.wait(["failed/0"], datetime.timedelta(seconds=3))
        return store.get("failed/0").decode() == sentence
    return False


def first_prepares(what: str, prepare: Callable[[], Any]) -> Any:
    """What `prepare` returns on the first process (plain values, as JSON has them), which alone calls it.

    `what` names it, once in a run.

    The others wait, however long it takes. Where it raises, they end with its exit status and say nothing.
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
            _tell(store, name, {"status": status})
            raise
        _tell(store, name, {"result": result})
        return result
    try:
        store.wait([name], datetime.timedelta(days=PREPARING_DAYS))
        told = json.loads(store.get(name))
        store.set(f"{name}/read/{dist.get_rank()}", "")
    except (RuntimeError, OSError) as error:  # the store went with the first process
        raise SystemExit(LOST) from error
    if "status" in told:
        raise SystemExit(told["status"])
    return told["result"]


def _tell(store: Any, name: str, told: dict[str, Any]) -> None:
    """Ends when all have read it: it may be the last word of the first process, and the store ends with that."""
    store.set(name, json.dumps(told))
    with contextlib.suppress(RuntimeError, OSError):  # who is gone reads nothing; that is told elsewhere
        readers = [f"{name}/read/{rank}" for rank in range(1, world_size())]
        store.wait(readers, datetime.timedelta(seconds=READING_SECONDS))


def gathered(value: Any) -> list[Any]:
    """The value of each process, in the order of ranks; plain values or tensors."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def largest(number: int) -> int:
    """Of all processes."""
    if world_size() == 1:
        return number
    told = torch.tensor(number)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def summed(numbers: Tensor) -> Tensor:
    """The sum over all processes, on the device where the numbers are."""
    if world_size() == 1:
        return numbers
    total = numbers.clone()
    dist.all_reduce(total)
    return total


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may lie in parts on several devices. All processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Of such a tensor what lies here, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
