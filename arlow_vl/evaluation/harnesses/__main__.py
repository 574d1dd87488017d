"""Starts a harness that knows Arlow: `python -m arlow_vl.evaluation.harnesses lm-eval run --model arlow_vl ...`."""

import importlib
import os
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from arlow_vl.models import auto  # noqa: F401 - transformers' Auto classes know "arlow" and "arlow_vl" from here on
from arlow_vl.printing import print_line

USAGE = """usage: python -m arlow_vl.evaluation.harnesses HARNESS [its own arguments]

  lm-eval run --model arlow_vl --model_args pretrained=FOLDER --tasks TASK   text and images, also by log-probability
  lm-eval run --model hf --model_args pretrained=FOLDER --tasks TASK         its own text model, on an Arlow folder too
  vlmevalkit VLMEVALKIT/run.py --model arlow_vl --data SET                   the folder stands in ARLOW_VL_MODEL

lmms-eval finds Arlow by itself: lmms-eval eval --model arlow_vl --model_args pretrained=FOLDER --tasks TASK

docs/harnesses.md says how to install each."""


def run_lm_eval() -> None:
    importlib.import_module("arlow_vl.evaluation.harnesses.lm_eval")
    importlib.import_module("lm_eval.__main__").cli_evaluate()


def run_vlmevalkit() -> None:
    folder, script = os.environ.get("ARLOW_VL_MODEL"), Path(sys.argv[1] if len(sys.argv) > 1 else "run.py")
    if not folder:
        raise ValueError("ARLOW_VL_MODEL is not set; let it name the model folder")
    if not script.is_file():
        raise ValueError(f"{script} is no file; name run.py of a checkout of VLMEvalKit")
    sys.path.insert(0, str(script.resolve().parent))  # a checkout need not be installed
    from vlmeval.config import supported_VLM  # pyrefly: ignore[missing-import]

    from arlow_vl.evaluation.harnesses.vlmevalkit import ArlowVLM

    supported_VLM["arlow_vl"] = partial(ArlowVLM, folder)
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")


HARNESSES: dict[str, Callable[[], None]] = {
    "lm-eval": run_lm_eval,
    "vlmevalkit": run_vlmevalkit,
}


def main() -> int:
    """Runs a harness. Returns the exit status; errors have those of the `arlow` command, by default 2."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in HARNESSES:
        print(USAGE, file=sys.stdout if name in ("-h", "--help") else sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    sys.argv = [name, *sys.argv[2:]]
    try:
        HARNESSES[name]()
    except ModuleNotFoundError as error:
        print_line(f"{name}: {error.name} is not installed; docs/harnesses.md says how", file=sys.stderr)
        return 2
    except ValueError as error:
        print_line(f"{name}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
