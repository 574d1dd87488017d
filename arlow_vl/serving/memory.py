"""Memory that large requests took goes back to the system."""

import ctypes
import sys


def give_back() -> None:
    """Returns what was freed. Without it glibc keeps it, in a pool for each thread, for as long as the process runs.

    Takes some milliseconds; any thread may call it. Elsewhere than on Linux with glibc it does nothing.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
