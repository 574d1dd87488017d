"""Cores that this process may use, which in a container or a job are fewer than the machine has."""

import os


def cores() -> int:
    """Returns their number; macOS binds no process to cores, so it has all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
