"""Small sources as people have them, written into a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from arlow_vl.data.formats.detect import Source, open_source
from arlow_vl.data.samples import Sample, Text
from tests.outside_data import JPEG


class Folder:
    """A folder that a test fills and reads as a source."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source: Source | None = None

    def images(self, *names: str) -> "Folder":
        for name in names:
            self.write(name, JPEG)
        return self

    def write(self, name: str, content: bytes | str | Any) -> Path:
        """Bytes and text as they are, a list as lines of JSON in a .jsonl, anything else as JSON."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            path.write_text(json.dumps(content))
        return path

    def read(self, name: str = "", **options) -> list[Sample]:
        """The samples of a file, glob or, without a name, the folder; the source stays for its tally."""
        self.source = open_source(self.path / name, **options)
        samples = list(self.source.iterate())
        for sample in samples:
            assert all(image_places(text) == len(sample.images) for text in sample.texts)
        assert len({sample.key for sample in samples}) == len(samples) == self.source.tally.samples
        return samples

    @property
    def skipped(self) -> dict[str, int]:
        return dict(self.source.tally.skipped)

    @property
    def texts_skipped(self) -> dict[str, int]:
        return {
            bad.reason: sum(b.reason == bad.reason for b in self.source.tally.bad_texts)
            for bad in self.source.tally.bad_texts
        }


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def image_places(text: Text) -> int:
    """Returns the number of images that a text has a place for."""
    parts = list(text.document)
    for message in text.messages:
        if isinstance(message["content"], list):
            parts += message["content"]
    return sum(part["type"] == "image" for part in parts)


def turns_of(sample: Sample) -> list[list[tuple[str, str]]]:
    """Every text as (role, words) with `[image]` for a place, for short comparisons."""
    return [
        [(message["role"], written(message["content"])) for message in text.messages]
        or [("document", written(list(text.document)))]
        for text in sample.texts
    ]


def written(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "[image]") for part in content)
