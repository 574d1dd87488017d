"""Deterministic WebDataset shards and their index."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arlow_vl.data.fetch.splits import hash_fraction
from vision.whole_files import sha256_of_file, write_whole

SAMPLES_PER_SHARD = 1000


@dataclass(frozen=True, kw_only=True)
class Sample:
    key: str
    extension: str
    """Extension of the image, without a dot."""
    image: bytes
    text: str
    fields: dict


def write_shards(folder: Path, split: str, samples: Sequence[Sample]) -> dict[str, dict]:
    """Writes the samples in hash order, so that shards mix the sources; returns the split's part of the index."""
    ordered = sorted(samples, key=lambda sample: hash_fraction(sample.key, "order"))
    index = {}
    for start in range(0, len(ordered), SAMPLES_PER_SHARD):
        path = folder / f"{split}-{start // SAMPLES_PER_SHARD:06d}.tar"
        part = ordered[start : start + SAMPLES_PER_SHARD]
        write_shard(path, part)
        index[path.name] = {"samples": len(part), "bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    return index


def write_shard(path: Path, samples: Sequence[Sample]) -> None:
    from webdataset import TarWriter

    with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for sample in samples:
            fields = json.dumps(sample.fields, ensure_ascii=False, sort_keys=True)
            members = {sample.extension: sample.image, "txt": sample.text.encode(), "json": fields.encode()}
            tar.write({"__key__": sample.key, **members})


def write_index(folder: Path, index: dict[str, dict], *, summary: str) -> None:
    """Writes index.json: the facts of each shard and, for people, a summary of all."""
    facts: dict[str, Any] = {"summary": summary, **index}
    write_whole(folder / "index.json", json.dumps(facts, indent=1, sort_keys=True) + "\n")


def shards_of(folder: Path, split: str) -> Iterator[Path]:
    yield from sorted(folder.glob(f"{split}-[0-9]*.tar"))
