"""Freed memory is kept where the C library can, and used again."""

import ctypes
import platform
import subprocess
import sys

import pytest

from vision import allocator
from vision.allocator import keep_freed_memory

ROUNDS = """if True:
    import ctypes, resource, sys, threading
    from vision.allocator import keep_freed_memory
    if sys.argv[1] == "kept":
        assert keep_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

    def rounds():
        for number in range(11):
            if number == 1:
                before.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            blocks = [(libc.malloc(size), size) for size in range(2**20, 12 * 2**20, 2**20)]
            for block, size in blocks:
                libc.memset(block, 1, size)
            for block, size in blocks:
                libc.free(block)

    before = []
    thread = threading.Thread(target=rounds)
    thread.start()
    thread.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before[0])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_what_is_freed_is_not_fetched_again_page_by_page():
    faults = {}
    for how in ("kept", "as before"):
        command = [sys.executable, "-c", ROUNDS, how]
        faults[how] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert faults["kept"] < faults["as before"] / 4


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False


def test_a_refusal_of_the_c_library_is_told_and_the_other_settings_are_tried(monkeypatch):
    tried = []

    class Refusing:
        def mallopt(self, name: int, value: int) -> int:
            tried.append(name)
            return 0

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Refusing())
    assert keep_freed_memory() is False
    assert len(set(tried)) == 3


def test_blocks_up_to_the_largest_that_glibc_takes_are_kept():
    assert 4 * 2**20 * ctypes.sizeof(ctypes.c_long) >= allocator.LARGEST  # HEAP_MAX_SIZE / 2 of malloc.c
