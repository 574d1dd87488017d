"""Processes that share work: every task has its result once, and no process is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arlow_vl.data.processes import in_processes
from arlow_vl.errors import DataError, ResourceError


def squared(number: int) -> int:
    return number * number


def refused(number: int) -> int:
    raise DataError(f"no. {number}")


def killed(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 3])
def test_each_task_has_its_result(workers):
    assert dict(in_processes(squared, range(20), workers)) == {number: number * number for number in range(20)}
    assert list(in_processes(squared, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_out_as_it_was(workers):
    with pytest.raises(DataError, match=r"no\. 0"):
        dict(in_processes(refused, [0], workers))


def test_a_worker_that_is_killed_is_one_sentence():
    with pytest.raises(ResourceError, match="a worker process was killed, perhaps for lack of memory"):
        dict(in_processes(killed, range(3), 2))


def counted(number: int, tell) -> int:
    for done in range(number):
        tell(done)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_tells_how_far_it_is(workers):
    told = []
    results = in_processes(counted, [1, 1, 1], workers, report=lambda *what: told.append(what))
    assert [result for _, result in results] == [1, 1, 1]
    assert told.count((1, 0)) >= 2  # each process at once, then a few times a second


def test_a_task_that_kills_its_process_is_named():
    with pytest.raises(ResourceError, match=r"the process that read no\. 0 died \(exit status -9\)"):
        dict(in_processes(killed, [0], 2, named=lambda number: f"no. {number}"))


def test_tasks_are_taken_as_processes_get_free():
    taken = []
    results = in_processes(squared, (taken.append(number) or number for number in range(100)), 2)
    next(results)
    assert len(taken) <= 4
    results.close()


# A process that has forked two workers which wait, and that prints their numbers; its modules are loaded by path, as
# importing the package takes seconds.
WAITING = """
import os, sys, time, types
sys.modules["arlow_vl"] = types.ModuleType("arlow_vl"); sys.modules["arlow_vl.errors"] = errors = types.ModuleType("e")
errors.ResourceError = OSError
exec(open(sys.argv[1]).read())
def wait_long(number):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)
for _ in in_processes(wait_long, range(2), 2):
    pass
"""
SOURCE = Path(__file__).parents[2] / "arlow_vl/data/processes.py"


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(how):
    command = [sys.executable, "-c", WAITING, str(SOURCE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(how)
        parent.wait()
    end = time.monotonic() + 5
    while any(map(is_alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
