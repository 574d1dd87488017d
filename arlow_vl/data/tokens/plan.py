"""What an interrupted run goes on by: of which settings the parts in a folder of tokens are, and of which files."""

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
class Plan:
    """Lies in a folder from its first start until the manifest does."""

    settings: str
    """Hash of the files' names and all but their bytes that decides what the shards hold."""
    name: str
    """With which the names of the shards begin. Bytes count in it as they were at the first start, so that no reader
    of a folder meets the shards of another text under the names that it knows."""
    bounds: list[list[str | int | None]]
    """Of each part, as `bounds_of` has them."""
    sources: list[SourceFile]
    """The files as they were before the last start."""

    def write(self, folder: Path) -> None:
        write_whole(folder / PLAN, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "Plan | None":
        """None: there is none, or one of another version."""
        try:
            values: dict[str, Any] = json.loads((folder / PLAN).read_text())
            values["sources"] = [SourceFile(**source) for source in values["sources"]]
            return cls(**values)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None


def bounds_of(parts: list[TextPart]) -> list[list[str | int | None]]:
    return [[str(part.path.resolve()), part.start, part.end] for part in parts]


def is_as_noted(noted: SourceFile, sha256: str | None) -> bool:
    """Whether the file has the bytes that it had when it was noted; a hash of them is needed where its time differs."""
    now = SourceFile.at(Path(noted.path))
    if sha256 is None:
        return (now.size, now.mtime_ns) == (noted.size, noted.mtime_ns)
    return not has_other_bytes(Path(noted.path), Path(noted.path).stat(), replace(noted, sha256=sha256))


def refuse_change(noted: SourceFile) -> None:
    """Raises DataError for a file that was written into after it was noted; the next start reads it anew."""
    if not is_as_noted(noted, None):
        raise DataError(f"{visible(noted.path)} changed while it was read; run the command again")
