"""Reads the findings that `arlow verify-frozen --output` saved beside results."""

from pathlib import Path

from arlow_vl.errors import DataError
from arlow_vl.evaluation.frozen import Check
from arlow_vl.evaluation.tasks.predictions import read_json
from arlow_vl.printing import visible

NAME = "frozen.json"


def read_checks(folder: Path) -> list[Check]:
    """Reads the checks; none if there is no file. Raises DataError for a file of another kind."""
    path = folder / NAME
    if not path.is_file():
        return []
    try:
        checks = [Check(**of) for of in read_json(path)["checks"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{visible(str(path))}: no findings of `arlow verify-frozen` ({error}); remove it") from None
    if not all(isinstance(check.claim, str) and isinstance(check.found, str) for check in checks):
        raise DataError(f"{visible(str(path))}: no findings of `arlow verify-frozen`; remove it")
    return checks
