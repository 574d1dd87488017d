"""Arlow-VL. Importing it registers Arlow with transformers' Auto classes (`arlow_vl.models.auto`).

Only the `arlow` command skips this until a subcommand needs a model, so that its help prints at once.
"""

import importlib
import sys
import sysconfig
from pathlib import Path


def __getattr__(name: str):
    """Returns a public class by its name, as in `arlow_vl.ArlowForCausalLM`."""
    if name.startswith("Arlow"):
        return getattr(importlib.import_module("arlow_vl.models.auto"), name)
    raise AttributeError(f"module 'arlow_vl' has no attribute {name!r}")


def _is_the_command() -> bool:
    """Returns True in a process started as the installed `arlow` command, not as another script of that name."""
    started = getattr(sys.modules.get("__main__"), "__file__", None)
    return started is not None and Path(started).resolve() == Path(sysconfig.get_path("scripts"), "arlow").resolve()


if not _is_the_command():
    importlib.import_module("arlow_vl.models.auto")
