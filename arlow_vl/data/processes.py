"""Work shared by several processes, whose results come as they are ready; none of them outlives this process."""

import ctypes
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from arlow_vl.errors import ResourceError

SECONDS_BETWEEN_REPORTS = 0.2
SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
# Forked where that is safe: a fresh process would import everything again, for seconds.
CONTEXT: Any = get_context("fork" if sys.platform == "linux" else "spawn")


def in_processes(
    work: Callable[..., Any],
    tasks: Iterable[Any],
    workers: int,
    *,
    report: Callable[[Any, Any], None] | None = None,
    named: Callable[[Any], str] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yields each task with its result, in the order in which they are ready; one worker is this process itself.

    Tasks are taken as processes get free. Closing the iterator ends the processes.

    Args:
        work: Called with a task and, where there is a `report`, with a function: `report` gets the task and the value
            that this function is called with.
        named: Names what a task reads, for messages.

    Raises:
        ResourceError: a process was killed, as systems do that run out of memory.
        Exception: what `work` raised.
    """
    if workers == 1:
        for task in tasks:
            yield task, work(task, partial(report, task)) if report else work(task)
        return
    coming, free, running = iter(tasks), [], {}
    processes: dict[Connection, Any] = {}
    try:
        ahead = list(islice(coming, 1))  # one waits for a process, not a process for one
        while ahead or running:
            while ahead and len(running) < workers:
                if not free:
                    free.append(_start(work, report is not None, processes))
                connection = free.pop()
                connection.send(ahead[0])
                running[connection] = ahead[0]
                ahead = list(islice(coming, 1))
            for connection in cast("list[Connection]", wait(list(running))):
                try:
                    kind, value = connection.recv()
                except (EOFError, ConnectionError):
                    processes[connection].join()
                    status = processes[connection].exitcode
                    raise ResourceError(_death(named(running[connection]) if named else "", status)) from None
                if kind == "progress":
                    assert report is not None
                    report(running[connection], value)
                    continue
                task = running.pop(connection)
                free.append(connection)
                if kind == "raised":
                    raise value
                yield task, value
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _start(work: Callable[..., Any], sends_progress: bool, processes: dict[Connection, Any]) -> Connection:
    """Starts a process that waits for tasks. The work is sent once: it may hold the indexes of a thousand shards."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(work, sends_progress, theirs, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    processes[ours] = process
    return ours


def _death(name: str, status: int) -> str:
    if not name:
        return "a worker process was killed, perhaps for lack of memory; close other programs, or use fewer workers"
    return (
        f"the process that read {name} died (exit status {status}), perhaps for lack of memory; run the command again "
        "to resume, with fewer workers"
    )


def _serve(work: Callable[..., Any], sends_progress: bool, connection: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with SIGTERM
    end_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were the parent's
    sent_at = 0.0

    def send_progress(value: Any) -> None:
        nonlocal sent_at
        if time.monotonic() - sent_at > SECONDS_BETWEEN_REPORTS:
            sent_at = time.monotonic()
            connection.send(("progress", value))

    try:
        while True:
            task = connection.recv()
            try:
                answer = "done", work(task, send_progress) if sends_progress else work(task)
            except Exception as error:  # it is raised where the result is awaited
                answer = "raised", portable(error)
            connection.send(answer)
    except (EOFError, ConnectionError):  # the parent has closed the connection
        return


def end_with(parent: int) -> None:
    """Makes this process end with its parent: at once on Linux, elsewhere when it next uses the closed connection."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)


def portable(error: Exception) -> Exception:
    """Returns the error in a form that can be pickled, with its traceback in this process as a note."""
    error.add_note("in a process that reads data:\n" + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error whose class cannot be built from its arguments
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
