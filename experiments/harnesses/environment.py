"""Makes a temporary environment with a harness and this package, runs commands in it offline, and tabulates scores.

The environment sees the packages of the one that starts it, so that torch is not downloaded again; pip installs other
versions that a harness needs into the environment alone.
"""

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
PACKAGE = ("arlow_vl", "vision", "pyproject.toml", "README.md", "LICENSE")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # a small model gains nothing by more, and on busy cores they wait for each other
}


class Row(NamedTuple):
    """A score of a harness beside ours."""

    run: str
    metric: str
    harness: float
    ours: float
    """Computed by this package from the same predictions."""
    evaluate: str = ""
    """Number of predictions that equal those of `arlow evaluate`; empty if it did not ask the same."""


def make_environment(folder: Path, packages: Sequence[str]) -> Path:
    """Makes the environment, or updates an existing one, and returns its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "of_the_project.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run_in(python, "-m", "pip", "install", "--quiet", *packages)
    source = folder / "source"  # a copy, as a build leaves files beside its source
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for name in PACKAGE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    run_in(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(source))
    return python


def run_in(python: Path, *words: str, **variables: str) -> None:
    """Runs a command in the environment. Raises SystemExit with the end of its output if it fails."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    print("$", " ".join(words), flush=True)
    done = subprocess.run(
        [str(python), *words],
        env=clean | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=python.parents[1],
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-3000:]}\n{' '.join(words)} ended with {done.returncode}")


def versions_in(python: Path, *packages: str) -> dict[str, str]:
    code = (
        "import json, sys; from importlib.metadata import version; print(json.dumps(list(map(version, sys.argv[1:]))))"
    )
    done = subprocess.run([str(python), "-c", code, *packages], text=True, capture_output=True, check=True)
    return dict(zip(packages, json.loads(done.stdout), strict=True))


def report(name: str, rows: Sequence[Row], versions: dict[str, str]) -> None:
    """Prints the table and writes results/NAME.json. Raises SystemExit if a score differs from ours."""
    RESULTS.mkdir(exist_ok=True)
    values: dict[str, Any] = {"versions": versions, "rows": [row._asdict() for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(values)}")
    if any(abs(row.harness - row.ours) > 1e-9 * max(1, abs(row.ours)) for row in rows):
        raise SystemExit("a score differs from ours")


def table(values: dict[str, Any]) -> str:
    """Formats a results file in Markdown."""
    lines = [
        "| run | metric | harness | ours, same predictions | as `arlow evaluate` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for of in values["rows"]:
        row = Row(**of)
        lines.append(f"| {row.run} | {row.metric} | {row.harness:.4f} | {row.ours:.4f} | {row.evaluate or '-'} |")
    versions = ", ".join(f"{package} {number}" for package, number in values["versions"].items())
    return "\n".join([*lines, "", f"{versions}."])
