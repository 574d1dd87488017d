"""Failures that a user can meet, each with the exit status that the `arlow` command ends with."""

from arlow_vl.models.arlow.errors import CheckpointError, DataError


class DivergenceError(RuntimeError):
    """Gradients or weights are no longer finite numbers."""

    exit_code = 5


class ResourceError(OSError):
    """The machine ran out of something: disk space, memory, permission to write."""

    exit_code = 6


NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""Messages of torch's allocators; the CPU allocator raises a plain RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True for an error that torch or Python raises when memory runs out."""
    if isinstance(error, MemoryError):
        return True
    is_from_torch = type(error) is RuntimeError or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")
    return is_from_torch and any(words in str(error) for words in NO_MEMORY)


__all__ = ["CheckpointError", "DataError", "DivergenceError", "ResourceError", "is_out_of_memory"]
