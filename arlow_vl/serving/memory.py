"""Returns the memory of large requests to the operating system."""

import ctypes
import sys


def give_back() -> None:
    """Returns freed memory, which glibc otherwise keeps in a pool per thread for as long as the process runs.

    Takes some milliseconds; any thread may call it. Does nothing except on Linux with glibc.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
