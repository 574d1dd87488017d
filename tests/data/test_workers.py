"""Processes that read ahead: the same results in the same order for any number of them, through deaths and hangs."""

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from arlow_vl.data.workers import TASKS_AHEAD, Pool
from arlow_vl.errors import DataError
from vision.decoding.image import ImageError

needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")


def results(read, tasks, *, workers: int, **settings) -> list:
    with Pool(read, workers=workers, **settings) as pool:
        return list(pool.results(tasks))


def square(task, at):
    at(f"sample {task}")
    return task * task


@pytest.mark.parametrize("workers", range(5))
def test_results_come_in_order(workers):
    def read(task, at):
        time.sleep(0.002 * (task % 3))
        return square(task, at)

    assert results(read, range(40), workers=workers) == [n * n for n in range(40)]


def test_tensors_and_arrays_arrive_as_they_were():
    value = {
        "pixels": torch.arange(12, dtype=torch.uint8).reshape(3, 4),
        "half": torch.randn(5, 7, dtype=torch.bfloat16),
        "turned": torch.randn(4, 3).T,
        "scalar": torch.tensor(3.5),
        "none": torch.empty(0, 2),
        "array": np.arange(6.0).reshape(2, 3),
        "keys": ["a", "b"],
    }
    (got,) = results(lambda task, at: value, [0], workers=1)
    assert got.keys() == value.keys()
    assert got["keys"] == value["keys"]
    assert (got["array"] == value["array"]).all()
    for name in ("pixels", "half", "turned", "scalar", "none"):
        assert got[name].dtype == value[name].dtype
        assert torch.equal(got[name], value[name])
    got["pixels"] += 1  # they are the receiver's own


def test_a_batch_lives_as_long_as_it_is_used_and_longer_than_the_pool():
    with Pool(lambda task, at: torch.full((1000,), task), workers=2) as pool:
        kept = list(pool.results(range(8)))
    assert [tensor.unique().tolist() for tensor in kept] == [[n] for n in range(8)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_reading_ahead_is_bounded(workers):
    asked = []

    def tasks():
        for number in itertools.count():
            asked.append(number)
            yield number

    with Pool(square, workers=workers) as pool:
        stream = pool.results(tasks())
        for _ in range(10):
            next(stream)
    assert len(asked) <= 10 + max(0, workers * TASKS_AHEAD)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(
    "error", [ImageError("a.tar:1", "truncated", "cut short"), DataError("shard gone"), KeyError("x")]
)
def test_an_error_comes_at_its_place_as_it_was(workers, error):
    def read(task, at):
        if task == 5:
            raise error
        return task

    got = []
    with Pool(read, workers=workers) as pool, pytest.raises(type(error)) as caught:
        got.extend(pool.results(range(9)))
    assert got == list(range(5))
    assert str(caught.value) == str(error)
    assert vars(caught.value).keys() >= {key for key in vars(error) if key != "__notes__"}


def test_what_cannot_be_sent_is_an_error_that_says_so():
    with pytest.raises((RuntimeError, AttributeError, TypeError), match=r"pickle|local object"):
        results(lambda task, at: lambda: None, [0], workers=1)


class OnlyOnce:
    """Does something bad to the worker that reads `bad`, the first `times` times."""

    def __init__(self, folder: Path, bad: int, do, times: int = 1):
        self.folder, self.bad, self.do, self.times = folder, bad, do, times

    def __call__(self, task, at):
        at(f"shard-3.tar:{task}")
        if task == self.bad:
            before = len(list(self.folder.iterdir()))
            if before < self.times:
                (self.folder / str(before)).touch()
                self.do()
        return task


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(60)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("bad", [0, 7, 19])
def test_a_worker_that_is_killed_is_named_with_its_key_and_replaced(tmp_path, workers, bad, caplog):
    assert results(OnlyOnce(tmp_path, bad, die), range(20), workers=workers) == list(range(20))
    assert f"died (SIGKILL) at shard-3.tar:{bad}; another one reads it again" in caplog.text


@pytest.mark.parametrize("do", [hang, stop])
def test_a_worker_that_hangs_is_named_with_its_key_and_replaced(tmp_path, do, caplog):
    read = OnlyOnce(tmp_path, 4, do)
    assert results(read, range(9), workers=2, hang_seconds=0.4) == list(range(9))
    assert "was busy for over 0.4 s at shard-3.tar:4; another one reads it again" in caplog.text


def test_a_pool_that_waits_for_the_step_does_not_take_its_workers_for_hanging(caplog):
    with Pool(square, workers=2, hang_seconds=0.3) as pool:
        for number, result in enumerate(pool.results(range(8))):
            assert result == number**2
            time.sleep(0.15 if number else 0.6)
    assert not caplog.text


def test_a_sample_that_kills_two_workers_ends_the_run_at_its_place(tmp_path):
    got = []
    sentence = r"a process that reads data died \(SIGKILL\) at shard-3.tar:6, for the second time; look at that sample"
    with Pool(OnlyOnce(tmp_path, 6, die, times=2), workers=3) as pool, pytest.raises(DataError, match=sentence):
        got.extend(pool.results(range(12)))
    assert got == list(range(6))


def test_workers_that_are_killed_from_outside_again_and_again_change_nothing():
    def read(task, at):
        time.sleep(0.01)
        return task

    got = []
    with Pool(read, workers=3) as pool:
        for number, result in enumerate(pool.results(range(60))):
            got.append(result)
            if number % 20 == 10:
                os.kill(pool.workers[number % 3].process.pid, signal.SIGKILL)
    assert got == list(range(60))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: list[int], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(alive, pids)):
        time.sleep(0.01)
    return not any(map(alive, pids))


def train(sender, read) -> None:
    """A run: tells its workers and itself, and takes results until it is stopped."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Pool(read, workers=3) as pool:
            stream = pool.results(itertools.count())
            next(stream)
            sender.send([worker.process.pid for worker in pool.workers])
            for _ in stream:
                time.sleep(0.01)
    except KeyboardInterrupt:
        os._exit(130)


def first_then_busy(task, at):
    if task > 1:
        time.sleep(30)
    return task


@needs_proc
@pytest.mark.parametrize("read", [square, first_then_busy])
@pytest.mark.parametrize(("number", "whole_group", "status"), [("SIGKILL", False, -9), ("SIGINT", True, 130)])
def test_no_worker_is_left_when_the_run_is_killed_or_interrupted(read, number, whole_group, status):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    run = context.Process(target=train, args=(sender, read))
    run.start()
    assert receiver.poll(20)
    pids = receiver.recv()
    assert all(map(alive, pids))
    (os.killpg if whole_group else os.kill)(run.pid, signal.Signals[number])
    run.join(30)
    assert run.exitcode == status
    assert gone(pids)


@needs_proc
def test_closing_a_pool_leaves_no_process_and_no_descriptor():
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    with Pool(lambda task, at: np.zeros(1000), workers=3) as pool:
        pids = [worker.process.pid for worker in pool.workers]
        for result in pool.results(range(20)):
            del result
    del pool
    assert gone(pids)
    assert descriptors() <= before + 1


def test_a_task_that_was_begun_is_read_while_others_are():
    with Pool(lambda task, at: (os.getpid(), task), workers=2) as pool:
        waits = [pool.begin(n) for n in range(3)]
        assert [task for _, task in pool.results(range(10, 14))] == [10, 11, 12, 13]
        results = [wait() for wait in reversed(waits)]
    assert [task for _, task in results] == [2, 1, 0]
    assert all(pid != os.getpid() for pid, _ in results)


def test_without_workers_a_task_that_was_begun_is_read_when_it_is_asked_for():
    read = []
    wait = Pool(lambda task, at: read.append(task), workers=0).begin(5)
    assert read == []
    wait()
    assert read == [5]
