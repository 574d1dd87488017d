"""What pyproject.toml declares is what the code imports: no more, no less."""

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from arlow_vl.data.fetch import EXTRA, fetch

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"arlow_vl", "vision", "experiments", "tests"}
CALLED_BY_TRANSFORMERS = {"accelerate", "bitsandbytes", "protobuf"}  # in Trainer, BitsAndBytesConfig, sentencepiece
HARNESSES = "arlow_vl/evaluation/harnesses/"  # its modules are imported by, or for, the harness that they are about
ON_NO_INDEX = {"vlmeval"}
PEERS = {"litgpt", "datasets"}  # measured beside ours where somebody has installed it (experiments/benchmarks)
CALLED_BY_LIGHTNING = {"tensorboard", "wandb", "mlflow"}  # by its loggers
CALLED_BY_MKDOCS = {"mkdocs-material", "mkdocstrings"}  # docs/site/mkdocs.yml names them
ENTRY_POINTS = {"ruff", "pyrefly", "import-linter", "pytest-xdist", "beartype"}  # commands, plugins, named in a string


def distribution(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


REQUIRED = {distribution(text) for text in PROJECT["dependencies"]}
EXTRAS = {
    name: {distribution(text) for text in requirements} - {PROJECT["name"]}
    for name, requirements in PROJECT["optional-dependencies"].items()
}


@functools.cache
def imports(*folders: str) -> dict[tuple[str, bool], str]:
    """(distribution, is it imported with its module?) -> a place that imports it."""
    installed = packages_distributions()
    found = {}
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        late = {id(node) for function in ast.walk(tree) if is_function(function) for node in ast.walk(function)}
        for node in ast.walk(tree):
            for name in imported_names(node) - OWN - sys.stdlib_module_names:
                package = installed.get(name, [name])[0].lower().replace("_", "-")
                found.setdefault((package, id(node) not in late), f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imported_names(node: ast.AST) -> set[str]:
    """Top-level packages of an import."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {node.module.partition(".")[0]} if isinstance(node, ast.ImportFrom) and not node.level else set()


def test_every_import_of_the_package_is_declared():
    """What an extra brings is imported inside the function that needs it, so that the rest works without."""
    optional = set().union(*EXTRAS.values())
    for (package, at_import), place in imports("arlow_vl", "vision").items():
        in_harness = place.startswith(HARNESSES)
        declared = REQUIRED if at_import and not in_harness else REQUIRED | optional
        declared = declared | ON_NO_INDEX if in_harness else declared
        assert package in declared, f"{place} imports {package}, which pyproject.toml does not require"


def test_every_import_of_the_experiments_is_declared():
    optional = set().union(*EXTRAS.values())
    for (package, _), place in imports("experiments").items():
        known = REQUIRED | optional | PEERS
        assert package in known, f"{place} imports {package}, which pyproject.toml does not declare"


def test_every_required_package_is_imported():
    used = {package for package, _ in imports("arlow_vl", "vision")}
    assert used >= REQUIRED, f"never imported: {sorted(REQUIRED - used)}"


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_package_of_an_extra_is_used(extra):
    used = {package for package, _ in imports("arlow_vl", "vision", "experiments", "tests")}
    unused = EXTRAS[extra] - used - CALLED_BY_TRANSFORMERS - CALLED_BY_LIGHTNING - CALLED_BY_MKDOCS - ENTRY_POINTS
    assert not unused, f"never imported: {sorted(unused)}"


def test_what_the_demo_alone_needs_is_its_extra():
    assert set(EXTRA.values()) == EXTRAS["demo"]
    assert not EXTRAS["demo"] & REQUIRED


@pytest.mark.parametrize("module", EXTRA)
def test_a_fetch_without_the_extra_says_what_to_install_before_it_fetches(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ValueError, match=rf"needs {EXTRA[module]}, .*pip install 'arlow-vl\[demo\]'"):
        fetch(tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("process", ["fresh_program", "fresh_doctor"])
def test_no_command_prints_torchs_warnings_about_torchao(process, request):
    """The `arlow` command and those of the experiments; in a program of one's own they are its owner's to silence."""
    ran = request.getfixturevalue(process)
    assert ran["status"] == 0 and "Enum subclass" not in ran["err"], ran["err"]
