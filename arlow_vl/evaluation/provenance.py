"""Sources and licences of evaluated data, as the data state them.

A sample's .json may name its `source` and `license`. The index.json beside the shards may hold the same for a whole
folder, and a `summary`, a sentence or two about the folder, which is printed above the scores.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arlow_vl.data.samples import ImageRef, Sample
from arlow_vl.printing import number_of

NOT_STATED = "not stated"


def describe_sources(samples: Iterable[Sample]) -> tuple[list[dict[str, str]], str]:
    """Returns a row for each source and licence, {name, license, use}, and the summaries of their folders, each once.

    `use` is the number of images, as "146 images".
    """
    counts: Counter[tuple[str, str]] = Counter()
    notes: dict[Path | None, dict[str, str]] = {}
    for sample in samples:
        folder = next((Path(image.path).parent for image in sample.images if isinstance(image, ImageRef)), None)
        if folder not in notes:
            notes[folder] = read_note(folder) if folder else {}
        fields = notes[folder] | {name: value for name, value in sample.fields.items() if isinstance(value, str)}
        unnamed = folder.name if folder else NOT_STATED
        counts[fields.get("source", unnamed), fields.get("license", NOT_STATED)] += len(sample.images)
    rows = [
        {"name": name, "license": licence, "use": number_of(count, "image")}
        for (name, licence), count in sorted(counts.items())
    ]
    return rows, " ".join(dict.fromkeys(note["summary"] for note in notes.values() if "summary" in note))


def read_note(folder: Path) -> dict[str, str]:
    """Returns those of source, license and summary that a folder's index.json states; empty if it cannot be read."""
    try:
        index: Any = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # the reader of the shards reports a broken one
    if not isinstance(index, dict):
        return {}
    return {name: index[name] for name in ("source", "license", "summary") if isinstance(index.get(name), str)}
