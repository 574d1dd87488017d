"""Arlow-VL. Importing it registers Arlow with transformers' Auto classes (`arlow_vl.models.auto`).

The `arlow` command alone does without until a verb needs a model, so that its help answers at once.
"""

import importlib
import sys
import sysconfig
from pathlib import Path


def __getattr__(name: str):
    """The public classes, by their names: `arlow_vl.ArlowForCausalLM`."""
    if name.startswith("Arlow"):
        return getattr(importlib.import_module("arlow_vl.models.auto"), name)
    raise AttributeError(f"module 'arlow_vl' has no attribute {name!r}")


def _is_the_command() -> bool:
    """True in a process that was started as the installed `arlow` command; a script named so is somebody's own."""
    started = getattr(sys.modules.get("__main__"), "__file__", None)
    return started is not None and Path(started).resolve() == Path(sysconfig.get_path("scripts"), "arlow").resolve()


if not _is_the_command():
    importlib.import_module("arlow_vl.models.auto")
