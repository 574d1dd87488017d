"""Log of a run's starts in starts.jsonl: versions, revision, machine, model and data, one line each."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from arlow_vl.json_text import json_text
from arlow_vl.printing import number_of, print_line
from arlow_vl.training.build import Stage
from arlow_vl.training.checkpoint_names import checkpoints, step_of
from arlow_vl.training.dry_run import count_of, parameters_of
from arlow_vl.training.logs import LineFile
from arlow_vl.training.recipe import Recipe, TextRecipe
from arlow_vl.versions import version_of

FILE = "starts.jsonl"
PACKAGES = ("arlow-vl", "torch", "transformers", "lightning", "timm")


def note_start(recipe: Recipe, stage: Stage) -> None:
    """Adds a line for this start and drops an incomplete one. Raises ValueError, see `compare_data`."""
    found = checkpoints(recipe.run_dir / "checkpoints")
    lines, facts = LineFile(recipe.run_dir / FILE), facts_of(recipe, stage)
    before: list[dict[str, Any]] = []

    def is_whole(line: str) -> bool:
        before.append(json.loads(line)["data"])
        return True

    lines.keep(is_whole)
    if found and before:
        compare_data(recipe, before[-1], facts["data"])
    lines.write(json_text({"step": step_of(found[0]) if found else 0} | facts))


def compare_data(recipe: Recipe, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares the data with those of the last start; prints a warning if validation data have changed.

    Raises:
        ValueError: a training source has changed.
    """
    if isinstance(recipe, TextRecipe):
        places = {"validation": {"validation": recipe.validation_text}, "training": {"train": recipe.train_text}}
    else:
        uses = {"validation": recipe.validation_sources, "training": recipe.sources}
        places = {use: {source.name: source.data for source in sources} for use, sources in uses.items()}
    for use in ("validation", "training"):
        for name, was in before[use].items():
            if (held := now[use].get(name)) in (None, was):
                continue
            sentence = (
                f"source {name} ({places[use][name]}) holds other {use} data than at the last start of the run "
                f"({number_of(was['items'], 'item')} then, {held['items']:,} now)"
            )
            if use == "training":
                raise ValueError(f"{sentence}; put them back, or use another run_dir to start anew")
            print_line(f"arlow: {sentence}; losses before and after cannot be compared", file=sys.stderr)


def facts_of(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Returns the content of the line for this start, all but the step."""
    model, policy = stage.module.model, stage.module.policy
    loaders = {"training": stage.data.training, "validation": stage.data.validation}
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "revision": revision(),
        "machine": machine(),
        "precision": recipe.run.precision,
        "parts": {
            component: {
                "parameters": count_of(parameters := parameters_of(model, component)),
                "trained": count_of([p for p in parameters if p.requires_grad]),
                "treatment": part.treatment,
            }
            for component, part in policy.items()
        },
        "data": {
            use: {s.name: {"items": len(s.dataset), "fingerprint": s.dataset.fingerprint} for s in loader.sources}
            for use, loader in loaders.items()
        },
        "workers": recipe.run.workers,
    }


def revision() -> str | None:
    """Returns the commit of the code, marked if files have changed since; None outside a git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}, changed since" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> str:
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads ({platform.machine()}, {sys.platform})"
    if not torch.cuda.is_available():
        return threads
    return f"{torch.cuda.get_device_name()} and {threads}"
