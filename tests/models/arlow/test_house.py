"""What the files of the decoder may be: they ship with a checkpoint, and its forward pass is read first."""

import ast
from pathlib import Path

import pytest

from arlow_vl.models.arlow import modeling_arlow

FILES = sorted(Path(modeling_arlow.__file__).parent.glob("*.py"))
PACKAGE = FILES[0].parents[2]
WRITTEN_ONCE = {"split_special_tokens=True)": {"data/prompts.py"}, "os.replace": {"whole_files.py"}}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_ships_imports_siblings_and_libraries_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            names = [] if node.level else [node.module]
        assert not {name.partition(".")[0] for name in names} & {"arlow_vl", "vision", "experiments", "tests"}


def test_the_forward_pass_is_a_story_of_45_lines():
    tree = ast.parse(Path(modeling_arlow.__file__).read_text())
    model = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ArlowModel")
    forward = next(node for node in model.body if isinstance(node, ast.FunctionDef) and node.name == "forward")
    assert forward.end_lineno - forward.body[0].end_lineno - 1 <= 45  # behind the docstring


@pytest.mark.parametrize("words", WRITTEN_ONCE)
def test_plain_ids_and_the_renaming_of_files_are_written_once(words):
    roots = PACKAGE, PACKAGE.parent / "vision"
    found = {str(path.relative_to(root)) for root in roots for path in root.rglob("*.py") if words in path.read_text()}
    assert found == WRITTEN_ONCE[words]


def test_images_are_called_images_and_models_by_the_fields_words():
    root = PACKAGE.parent
    files = [path for folder in ("arlow_vl", "vision", "experiments", "docs") for path in (root / folder).rglob("*")]
    texts = {path: path.read_text() for path in files if path.suffix in (".py", ".md", ".js", ".html", ".yaml")}
    del texts[root / "arlow_vl/data/fetch/splits.py"]  # a seed there holds the old word, and decides who is where
    assert not [path for path, text in texts.items() if "picture" in text.lower() or "with eyes" in text]
