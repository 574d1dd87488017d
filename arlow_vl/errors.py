"""The failures that a user can meet, each with the exit status that the `arlow` command ends with."""


class DataError(ValueError):
    """Outside data (a picture, shard or text) is missing, broken or unusable."""

    exit_code = 3


class CheckpointError(ValueError):
    """A checkpoint or weights file is missing, damaged or of another model."""

    exit_code = 4


class DivergenceError(RuntimeError):
    """Training left the finite numbers."""

    exit_code = 5


class ResourceError(OSError):
    """The machine ran out of something: disk space, memory, permission to write."""

    exit_code = 6
