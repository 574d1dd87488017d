"""Arlow-VL. Importing it registers Arlow with transformers' Auto classes (`arlow_vl.models.auto`).

The `arlow` command alone does without until a verb needs a model, so that its help answers at once.
"""

import importlib
import sys


def __getattr__(name: str):
    """The public classes, by their names: `arlow_vl.ArlowForCausalLM`."""
    if name.startswith("Arlow"):
        return getattr(importlib.import_module("arlow_vl.models.auto"), name)
    raise AttributeError(f"module 'arlow_vl' has no attribute {name!r}")


if "arlow_command" not in sys.modules:
    importlib.import_module("arlow_vl.models.auto")
