"""YAML written by people: duplicate keys are refused, and an error names the line, the fault and the remedy."""

from collections.abc import Hashable
from typing import Any

import yaml


class OneOfEachKey(yaml.SafeLoader):
    """A safe loader that refuses a key given twice in a mapping, of which YAML silently keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key_node.tag != "tag:yaml.org,2002:merge":
                if key in seen:
                    raise yaml.YAMLError(f"{key} is given twice, again in line {key_node.start_mark.line + 1}")
                seen.add(key)
        return super().construct_mapping(node, deep)


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """Returns `line 3, column 1: a tab, and YAML takes spaces; write spaces in its place`."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # of the loader's own errors, and of characters that YAML does not allow
        return " ".join(str(error).split())
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or "cannot be read"
    if mark.buffer is not None and mark.buffer[mark.pointer : mark.pointer + 1] == "\t":
        problem = "a tab, and YAML takes spaces; write spaces in its place"
    elif problem == "mapping values are not allowed here":
        problem = (
            "a second key in a line, or a line indented otherwise than those before; a text with ': ' needs quotes"
        )
    elif "cannot start any token" in problem:
        problem += "; put quotes around the value"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
