"""The failures that a user can meet, each with the exit status that the `arlow` command ends with."""

from arlow_vl.models.arlow.errors import CheckpointError, DataError


class DivergenceError(RuntimeError):
    """Training left the finite numbers."""

    exit_code = 5


class ResourceError(OSError):
    """The machine ran out of something: disk space, memory, permission to write."""

    exit_code = 6


NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch's allocators say. Those of CPUs have no class for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch or Python raise when no memory is left."""
    if isinstance(error, MemoryError):
        return True
    is_torchs = type(error) is RuntimeError or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")
    return is_torchs and any(words in str(error) for words in NO_MEMORY)


__all__ = ["CheckpointError", "DataError", "DivergenceError", "ResourceError", "is_out_of_memory"]
