"""Docstrings begin with what a thing is or returns, in words that a reader who is new to the code understands."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
VAGUE = re.compile(r"\s*(What|Of|Whether|Where|Who|How|Likewise)\b")
"""First words of fragments that need their context to be understood."""


def test_docstrings_begin_with_a_noun_or_a_verb():
    """Those of modules, classes and functions, and the strings below fields and constants."""
    vague = [
        f"{path.relative_to(ROOT)}, line {node.lineno}: {node.value.value[:60]}"
        for folder in ("arlow_vl", "vision", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if VAGUE.match(node.value.value)
    ]
    assert vague == []
