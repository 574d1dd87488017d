"""Arlow-VL. Importing it registers Arlow with transformers' Auto classes (`arlow_vl.models.auto`).

Only the `arlow` command skips this until a subcommand needs a model, so that its help prints at once.
"""

import importlib
import sys
from pathlib import Path


def __getattr__(name: str):
    """Returns a public class by its name, as in `arlow_vl.ArlowForCausalLM`."""
    if name.startswith("Arlow"):
        return getattr(importlib.import_module("arlow_vl.models.auto"), name)
    raise AttributeError(f"module 'arlow_vl' has no attribute {name!r}")


def _is_the_command() -> bool:
    """Returns True in a process started as `python -m arlow_vl.cli` or by the script of the `arlow` command, wherever
    that was installed, but not by another script of its name."""
    if sys.argv[:1] == ["-m"]:  # while Python looks for the module
        return sys.orig_argv[-len(sys.argv) :][:1] == ["arlow_vl.cli"]
    script = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "").resolve()
    return script.name == "arlow" and script.is_file() and b"from arlow_vl.cli import run" in script.read_bytes()


if not _is_the_command():
    importlib.import_module("arlow_vl.models.auto")
