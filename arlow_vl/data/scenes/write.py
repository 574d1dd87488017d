"""Writes a folder of scenes: shards of every split, with the same bytes by any number of processes."""

import json
import tarfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.prepare.members import write_tar
from arlow_vl.data.processes import in_processes
from arlow_vl.data.scenes.drawings import Drawings
from arlow_vl.data.scenes.paint import Painter
from arlow_vl.data.scenes.samples import make_twins, members_of_comparison, members_of_twins
from arlow_vl.data.scenes.splits import SPLITS, Split
from arlow_vl.data.shard_faults import is_whole, read_entries, write_entries
from arlow_vl.errors import DataError
from arlow_vl.printing import visible
from vision.whole_files import remove_remains, sha256_of_file, write_whole

LAYOUT = 4
"""Version that goes up when the same drawings and seed become other bytes."""
NOTE = "scenes.json"
"""File that records the settings of a folder, so that no other scenes are written into it."""
COMPARISONS = "comparisons"
TWINS_PER_SHARD = 500
DIFFERENCES = {
    "layout": "another version",
    "seed": "another seed",
    "drawings": "other drawings",
    "images": "more images in some split",
}
"""Words for a difference between two notes, by its field."""
SECONDS_STALE = 600
"""Age at which a half-written shard is that of a killed process."""
SUMMARY = (
    "Scenes are composed of emoji, stamps and clip art by rules, and their truth is exact. No score on them compares "
    "with one on photographs."
)


class Shard(NamedTuple):
    split: Split
    number: int
    twins: range

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"


def write_scenes(
    drawings: Drawings,
    out: Path,
    sizes: Mapping[Split, int],
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Split, int]:
    """Fills a folder with scenes; run again after an interruption, or for more images, it keeps whole shards.

    A shard is whole if it has the bytes that index.json, written after every shard, says. Another one is made again.

    Args:
        sizes: Images of each split; an odd number becomes the next even one, as scenes come in twins.
        workers: Number of processes.
        progress: Called with the images written so far and in all.

    Returns:
        Images by split. A split that has no drawings (`test-drawings`, without stamps) is left out.

    Raises:
        DataError: the folder holds other files.
        ResourceError: there is no room for a shard.
    """
    painters = {split: Painter(drawings.of(split)) for split in SPLITS if sizes.get(split) and drawings.of(split)}
    images = {split: sizes[split] + sizes[split] % 2 for split in painters}
    note = {"layout": LAYOUT, "seed": seed, "drawings": drawings.sha256, "images": images}
    _claim(out, note)
    for folder in (out, out / COMPARISONS):
        remove_remains(folder, seconds=SECONDS_STALE)
    license = ", ".join(drawings.licenses)
    shards = [shard for split, count in images.items() for shard in _shards(split, count // 2)]
    names = [shard.name for shard in shards]
    entries = {folder: read_entries(folder, names) for folder in (out, out / COMPARISONS)}
    done = 0
    write = partial(_write_shard, out, painters, seed, license)
    for shard, written in in_processes(write, shards, min(workers, len(shards))):
        for folder, entry in zip(entries, written, strict=True):
            entries[folder][shard.name] = entry
            write_entries(folder, entries[folder], summary=SUMMARY, source="scenes", license=license)
        done += 2 * len(shard.twins)
        progress(done, sum(images.values()))
    return images


def _shards(split: Split, twins: int) -> list[Shard]:
    starts = range(0, twins, TWINS_PER_SHARD)
    return [
        Shard(split, number, range(start, min(start + TWINS_PER_SHARD, twins))) for number, start in enumerate(starts)
    ]


def _write_shard(
    out: Path, painters: Mapping[Split, Painter], seed: int, license: str, shard: Shard
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes a shard and its comparisons, unless both are whole, and returns their entries for index.json."""
    paths = out / shard.name, out / COMPARISONS / shard.name
    if not all(map(is_whole, paths)):
        made = [(number, make_twins(painters[shard.split], seed, shard.split, number)) for number in shard.twins]
        for path, members_of in zip(paths, (members_of_twins, members_of_comparison), strict=True):
            members = (m for number, twins in made for m in members_of(twins, shard.split, number, license))
            write_whole(path, partial(write_tar, members=members))
    return _entry(paths[0]), _entry(paths[1])


def _entry(path: Path) -> dict[str, Any]:
    with tarfile.open(path) as tar:
        samples = sum(name.endswith(".json") for name in tar.getnames())
    return {"samples": samples, "bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def _claim(out: Path, note: dict[str, Any]) -> None:
    """Records the settings of the folder, or its new sizes. Raises DataError if it holds something else."""
    path = out / NOTE
    try:
        found = json.loads(path.read_bytes()) if path.exists() else None
    except ValueError:
        found = {}
    if found is None and out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise DataError(f"{visible(str(out))} holds other files; name an empty folder")
    if found is not None and found != note and _grows(found, note):
        _remove_short_shards(out, found["images"], note["images"])
        found = None
    if found is not None and found != note:
        differs = [name for name in DIFFERENCES if not isinstance(found, dict) or found.get(name) != note[name]]
        raise DataError(
            f"{visible(str(out))} holds scenes of {' and '.join(DIFFERENCES[name] for name in differs)}; "
            "name an empty folder, or remove this one"
        )
    if found is None:
        write_whole(path, json.dumps(note, indent=1) + "\n")


def _grows(found: Any, note: Mapping[str, Any]) -> bool:
    """Returns True if the same scenes are asked for, and at least as many of each split."""
    images = found.get("images") if isinstance(found, dict) else None
    return (
        isinstance(images, dict)
        and found == {**note, "images": images}
        and images.keys() == note["images"].keys()
        and all(isinstance(count, int) and count <= note["images"][split] for split, count in images.items())
    )


def _remove_short_shards(out: Path, before: Mapping[Split, int], images: Mapping[Split, int]) -> None:
    """Removes shards that were the last of their split and now get more twins."""
    for split, count in before.items():
        number, rest = divmod(count // 2, TWINS_PER_SHARD)
        if rest and count < images[split]:
            for folder in (out, out / COMPARISONS):
                (folder / f"{split}-{number:06d}.tar").unlink(missing_ok=True)
