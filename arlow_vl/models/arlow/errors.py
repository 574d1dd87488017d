# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Errors about data and checkpoints, each with the exit status that the `arlow` command ends with."""


class DataError(ValueError):
    """Outside data (an image, shard or text) is missing, broken or unusable."""

    exit_code = 3


class CheckpointError(ValueError):
    """A checkpoint or weights file is missing, damaged or of another model."""

    exit_code = 4
