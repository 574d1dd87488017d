"""The plan that an interrupted run resumes from: the settings and files that the parts in its folder were made with."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from arlow_vl.data.same_files import has_other_bytes
from arlow_vl.data.text_files import TextPart
from arlow_vl.data.tokens.manifest import SourceFile
from arlow_vl.errors import DataError
from arlow_vl.printing import visible
from vision.whole_files import write_whole

PLAN = "plan"


@dataclass(frozen=True)
class TokenizePlan:
    """The plan of a folder of tokens, which is there from the first start until the manifest is written."""

    settings: str
    """Hash of the files' paths and of all else that decides what the shards hold, except the files' bytes."""
    name: str
    """Prefix of the names of the shards. It depends on the files' sizes and times at the first start, so a reader of
    the folder never finds shards of another text under names that it knows."""
    bounds: list[list[str | int | None]]
    """File, start and end of each part, as `bounds_of` returns them."""
    sources: list[SourceFile]
    """The files as they were before the last start."""

    def write(self, folder: Path) -> None:
        write_whole(folder / PLAN, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "TokenizePlan | None":
        """Returns the plan of a folder; None: there is none, or one of another version."""
        try:
            values: dict[str, Any] = json.loads((folder / PLAN).read_text())
            values["sources"] = [SourceFile(**source) for source in values["sources"]]
            return cls(**values)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None


def bounds_of(parts: list[TextPart]) -> list[list[str | int | None]]:
    return [[str(part.path.resolve()), part.start, part.end] for part in parts]


def is_as_noted(noted: SourceFile, sha256: str | None) -> bool:
    """Returns True if the file has the bytes that it had when it was noted.

    `sha256` is their hash, which decides if only the time differs; None: a file with another time counts as changed.
    """
    now = SourceFile.at(Path(noted.path))
    if sha256 is None:
        return (now.size, now.mtime_ns) == (noted.size, noted.mtime_ns)
    return not has_other_bytes(Path(noted.path), Path(noted.path).stat(), replace(noted, sha256=sha256))


def refuse_change(noted: SourceFile) -> None:
    """Raises DataError for a file that was written to after it was noted; the next start reads it again."""
    if not is_as_noted(noted, None):
        raise DataError(f"{visible(noted.path)} changed while it was read; run the command again")
