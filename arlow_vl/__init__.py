"""Arlow-VL. Importing it registers Arlow with transformers' Auto classes (`arlow_vl.models.auto`).

The `arlow` command does without until a verb needs a model, so that its help answers at once.
"""

import importlib
import sys
from pathlib import Path

_STARTED_AS_COMMAND = Path(sys.argv[0]).stem == "arlow" if sys.argv else False


def __getattr__(name: str):
    """The public classes, by their names: `arlow_vl.ArlowForCausalLM`."""
    if name.startswith("Arlow"):
        return getattr(importlib.import_module("arlow_vl.models.auto"), name)
    raise AttributeError(f"module 'arlow_vl' has no attribute {name!r}")


if not _STARTED_AS_COMMAND:
    importlib.import_module("arlow_vl.models.auto")
