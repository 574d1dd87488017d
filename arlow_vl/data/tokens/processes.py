"""A process for each piece of work, a few at a time: what dies is named, and nobody outlives who started it."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from arlow_vl.errors import ResourceError
from arlow_vl.printing import visible

SECONDS_BETWEEN_REPORTS = 0.2
Work = Callable[[int, Callable[[int], None]], Any]


def run_in_processes(
    work: Work, todo: Sequence[int], workers: int, report: Callable[[int, int], None], *, names: Sequence[str]
) -> Iterator[tuple[int, Any]]:
    """(item, what `work` gave) as the items get done. `work(item, tell)` runs in a process of its own, forked.

    Closing the iterator ends the processes. `report` is called with an item and what its process told of it.

    Raises:
        ResourceError: a process was killed; `names` says on what.
        Exception: what `work` raised.
    """
    context = get_context("fork")  # `work` and what it holds are there already; nothing is imported again
    waiting = list(reversed(todo))
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                item = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(work, item, theirs, os.getpid()), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (item, process)
            for connection in cast("list[Connection]", wait(list(running))):
                item, process = running[connection]
                try:
                    kind, value = connection.recv()
                except EOFError:
                    process.join()
                    raise ResourceError(
                        f"the process that read {visible(names[item])} died (exit status {process.exitcode}), perhaps "
                        "for want of memory; run the command again to go on, with fewer --workers"
                    ) from None
                if kind == "read":
                    report(item, value)
                    continue
                process.join()
                del running[connection]
                if kind == "failed":
                    raise value
                yield item, value
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _run(work: Work, item: int, connection: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, who ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by this
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were the parent's
    told = 0.0

    def tell(value: int) -> None:
        nonlocal told
        if os.getppid() != parent:
            os._exit(1)
        if time.monotonic() - told > SECONDS_BETWEEN_REPORTS:
            told = time.monotonic()
            connection.send(("read", value))

    try:
        connection.send(("done", work(item, tell)))
    except (ValueError, OSError) as error:
        connection.send(("failed", error))
