"""docs/notebook.ipynb runs from its first cell to its last, on tiny models in the place of the demo's."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serving.tiny_folders import write_folders

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = json.loads((DOCS / "notebook.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    return write_folders(tmp_path_factory.mktemp("models"))


def run_notebook(text: Path, vision: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    cells = [CELLS[0].replace("../runs/first-light/vision/hf", str(vision)), *CELLS[1:]]
    cells[0] = cells[0].replace("../runs/first-light/text/hf", str(text))
    for number, cell in enumerate(cells):
        exec(compile(cell, f"notebook, code cell {number}", "exec"), names)
    return names


def test_the_notebook_sees_goes_blind_and_keeps_its_text(folders, monkeypatch):
    monkeypatch.chdir(DOCS)
    names = run_notebook(*folders)
    assert names["as_before"] and names["in_front_as_before"] and names["blind"]
    assert names["caption_with_open_gates"] != names["caption_with_closed_gates"]
    assert set(names["openings"].values()) == {torch.tensor(1.5).tanh().item()}
    assert names["words"] and names["sheet"].width > 100


def test_the_notebook_notices_text_that_did_change(folders, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    text, vision = folders
    shutil.copytree(text, tmp_path / "text")
    weights = load_file(tmp_path / "text" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.001
    save_file(weights, tmp_path / "text" / "model.safetensors", {"format": "pt"})
    monkeypatch.chdir(DOCS)
    with pytest.raises(AssertionError):
        run_notebook(tmp_path / "text", vision)


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert (DOCS / "notebook.ipynb").stat().st_size < 20_000
