"""Where evaluated data come from, in their own words; nothing is said of data that say nothing.

A sample's .json may name its `source` and `license`. The index.json beside the shards may hold the same for a whole
folder, and a `summary`: a sentence or two on what the folder holds, which stands above the scores.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from arlow_vl.data.shards import ShardSample

NOT_STATED = "not stated"


def describe_sources(samples_by_use: Mapping[str, Iterable[ShardSample]]) -> list[dict[str, str]]:
    """A row for each source and licence: {name, license, use}, where use counts images: "captions (146 images)"."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    notes: dict[Path, dict[str, str]] = {}
    for use, samples in samples_by_use.items():
        for sample in samples:
            folder = sample.shard.parent
            note = notes.setdefault(folder, read_note(folder))
            fields = note | {name: value for name, value in sample.fields.items() if isinstance(value, str)}
            counts[fields.get("source", folder.name), fields.get("license", NOT_STATED)][use] += 1
    return [
        {
            "name": name,
            "license": licence,
            "use": ", ".join(f"{use} ({count:,} image{'' if count == 1 else 's'})" for use, count in uses.items()),
        }
        for (name, licence), uses in sorted(counts.items())
    ]


def summarise_folders(folders: Iterable[Path]) -> str:
    """The folders' summaries, each once; empty where no folder carries one."""
    return " ".join(dict.fromkeys(note["summary"] for note in map(read_note, folders) if "summary" in note))


def read_note(folder: Path) -> dict[str, str]:
    """The texts among the entries of a folder's index.json; empty where it has none that can be read."""
    try:
        index: Any = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # the reader of the shards names a broken one
    if not isinstance(index, dict):
        return {}
    return {name: index[name] for name in ("source", "license", "summary") if isinstance(index.get(name), str)}
