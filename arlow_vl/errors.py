"""The failures that a user can meet, each with the exit status that the `arlow` command ends with."""

from arlow_vl.models.arlow.errors import CheckpointError, DataError


class DivergenceError(RuntimeError):
    """Training left the finite numbers."""

    exit_code = 5


class ResourceError(OSError):
    """The machine ran out of something: disk space, memory, permission to write."""

    exit_code = 6


__all__ = ["CheckpointError", "DataError", "DivergenceError", "ResourceError"]
