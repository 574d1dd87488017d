"""Work that several processes share, whose results come as they are ready; none of them outlives this one."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from arlow_vl.errors import ResourceError

SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)


def in_processes(work: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Each task with its result, in the order in which they are ready; in this process where one worker is asked for.

    Raises:
        ResourceError: a process was killed, as systems do that run out of memory.
    """
    if workers == 1:
        for task in tasks:
            yield task, work(task)
        return
    # Forked where that is safe: a fresh process would import everything again, for seconds.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    # The work goes to a process once and not with every task: it may hold the indexes of a thousand shards.
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(), work))
    try:
        running, coming = {}, iter(tasks)
        while True:
            for task in coming:
                running[pool.submit(_do, task)] = task
                if len(running) > workers:  # one waits
                    break
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise ResourceError("a worker process was killed, perhaps for want of memory; use fewer workers") from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


_work: list[Callable[[Any], Any]] = []  # of a worker process, given once when it begins


def _do(task: Any) -> Any:
    return _work[0](task)


def _begin(parent: int, work: Callable[[Any], Any]) -> None:
    """Leaves Ctrl-C to the parent, and ends with it, however it ends."""
    _work.append(work)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)
