"""Writes planned shards: each complete or absent, with the same bytes by any number of processes."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.file_names import names_of
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.reading import Index, IndexedSamples
from arlow_vl.data.prepare.members import members_of, safe_key, write_tar
from arlow_vl.data.prepare.plan import VALIDATION, PlannedShard, ShardSettings, plan_shards
from arlow_vl.data.processes import in_processes
from arlow_vl.data.shard_faults import is_whole, read_entries, write_entries
from arlow_vl.errors import DataError
from arlow_vl.printing import visible
from vision.whole_files import remove_remains, write_whole

PLAN_NAME = "prepare.json"
"""File that records the data and settings of a folder's shards, so that no others are written among them."""
SECONDS_STALE = 600
"""Age at which a half-written shard is that of a killed process."""
LAYOUT = 2
"""Version that goes up when the same samples become other shards."""
UNNAMED = re.compile(r"(?P<file>.+): (?P<place>(line|record|row) [0-9,]+)", re.DOTALL)
"""Key of a record that has no name."""


class Prepared(NamedTuple):
    samples: int
    validation: int
    """Number of samples that are held out for validation."""
    shards: int
    kept: int
    """Shards that were there already."""
    too_large: list[str]
    """Keys of samples whose texts are over the limit of readers; they are in no shard."""


def prepare(
    indexes: Sequence[Index],
    out: Path,
    settings: ShardSettings,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Writes the samples of a source as shards with index.json and their indexes.

    Args:
        workers: Number of processes.
        progress: Called with the samples written so far and in all.

    Raises:
        DataError: the folder holds other shards, or an image has changed since it was indexed.
        ResourceError: there is no room for a shard.
    """
    samples = IndexedSamples(indexes)
    _claim(out, {"layout": LAYOUT, "fingerprint": samples.fingerprint, **asdict(settings)})
    remove_remains(out, seconds=SECONDS_STALE)
    plan = plan_shards(samples, settings)
    entries, kept, done = read_entries(out, [shard.name for shard in plan.shards]), 0, 0
    total = sum(len(shard.positions) for shard in plan.shards)
    write = partial(write_shard, out, samples)
    for shard, (entry, was_there) in in_processes(write, plan.shards, min(workers, len(plan.shards))):
        entries[shard.name] = entry
        write_entries(out, entries)
        kept += was_there
        done += len(shard.positions)
        progress(done, total)
    _check_surplus(out, entries)
    validation = sum(len(shard.positions) for shard in plan.shards if shard.name.startswith(VALIDATION))
    return Prepared(total, validation, len(entries), kept, [samples.key(int(position)) for position in plan.too_large])


def write_shard(out: Path, samples: IndexedSamples, shard: PlannedShard) -> tuple[dict[str, Any], bool]:
    """Writes a shard and its index; returns its entry for index.json, and True if it was there and was kept.

    One that index.json does not vouch for is written again: reading it would take its damage for data.
    """
    path = out / shard.name
    was_there = is_whole(path)
    if not was_there:
        write_whole(path, lambda file: write_tar(file, _members(samples, shard)))
    (index,) = indexes_of(path)
    if len(index) != len(shard.positions):
        raise DataError(
            f"{visible(str(path))} has {len(index):,} samples where {len(shard.positions):,} belong; "
            "remove it and run the same command again"
        )
    (file,) = index.header.files
    return {"samples": len(index), "bytes": file.size, "sha256": file.sha256}, was_there


def _members(samples: IndexedSamples, shard: PlannedShard) -> Iterator[tuple[str, bytes]]:
    name_of = _key_rule(samples.indexes)
    for position in shard.positions.tolist():
        sample = samples.sample(position)
        images = [read_image(image, sample.key) for image in sample.images]
        yield from members_of(sample, name_of(sample.key, samples.locate(position)[0]), images)


def _key_rule(indexes: Sequence[Index]) -> Callable[[str, Index], str]:
    """Returns a function from a sample's key and its index to the key that its members are named by.

    Keys of shards, `a.tar:17`, become `17`, or `a/17` if there are several shards, as keys are unique only within a
    shard. Keys of records without a name, `a.jsonl: line 15`, become `line 15`, or `a/line 15`. No other key has a
    space, so none collides with these.
    """
    is_shards = indexes[0].header.format == "webdataset"
    files = list(names_of(index.base / file.name for index in indexes for file in index.header.files).values())
    is_one = len(indexes if is_shards else files) == 1
    stems = {file: os.path.splitext(file)[0] for file in files}
    if len(set(stems.values())) < len(files):
        stems = {file: file for file in files}

    def name_of(key: str, index: Index) -> str:
        if is_shards:
            folder, _, own = key.partition(f"{index.shard}:")
            folders = [] if is_one else [folder + os.path.splitext(index.shard)[0]]
            return "/".join(map(safe_key, [*folders, own]))
        unnamed = UNNAMED.fullmatch(key)
        if unnamed is None or unnamed["file"] not in stems:
            return safe_key(key)
        return unnamed["place"] if is_one else f"{safe_key(stems[unnamed['file']])}/{unnamed['place']}"

    return name_of


def _claim(out: Path, facts: dict[str, Any]) -> None:
    """Records the data and settings of the folder's shards. Raises DataError if it holds something else."""
    note = out / PLAN_NAME
    try:
        found = json.loads(note.read_bytes()) if note.exists() else None
    except ValueError:
        found = {}
    if found is None and out.is_dir() and any(out.glob("*.tar")):
        raise DataError(f"{visible(str(out))} holds shards already; name an empty folder")
    if found is None and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise DataError(f"{visible(str(out))} holds other files; name an empty folder")
    if found is not None and found != facts:
        differs = sorted(name for name in facts if found.get(name) != facts[name])
        of = "other data"
        if "fingerprint" not in differs:
            of = "another " + ", ".join(
                f"{name.replace('_', ' ')} ({found.get(name)}, not {facts[name]})" for name in differs
            )
        raise DataError(f"{visible(str(out))} holds shards of {of}; name an empty folder, or remove this one")
    if found is None:
        write_whole(note, json.dumps(facts, indent=1) + "\n")


def _check_surplus(out: Path, entries: dict[str, Any]) -> None:
    """Raises DataError for a tar that is not in the plan: it would be trained on too."""
    if surplus := sorted(path.name for path in out.glob("*.tar") if path.name not in entries):
        raise DataError(f"{visible(str(out / surplus[0]))} is no shard of these data; move it out of the folder")
