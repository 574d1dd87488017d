"""WebDataset shards: plain tars whose members `key.jpg`, `key.txt`, `key.json` make one sample.

The reader is our own: webdataset's drops samples silently, reads members of any size and can run code. One forward pass
finds every sample, keeps the texts, leaves the images in the shard, and counts by reason what is unusable.
"""

import os
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from arlow_vl.data.shard_samples import BadSample, FoundSample, Gathered, ReaderLimits, SampleGatherer, ShardOverflow
from arlow_vl.data.tar_members import TarDamage, tar_members
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

DEFAULT_LIMITS = ReaderLimits()


def gather_shard(path: Path, limits: ReaderLimits = DEFAULT_LIMITS) -> tuple[Gathered, int, list[str]]:
    """Returns what the members of a shard make, their number, and in words the damage that ended the reading, if any.

    No image is decoded.
    """
    gatherer, damage = SampleGatherer(limits), []
    with open(path, "rb") as file:
        try:
            for member in tar_members(file.fileno()):
                gatherer.add(member, partial(os.pread, file.fileno(), member.size, member.offset))
        except (TarDamage, ShardOverflow) as fault:
            damage.append(f"{fault} after sample {gatherer.last_key}" if gatherer.last_key else str(fault))
    return gatherer.finish(), gatherer.members, damage


def bad_texts_of(name: str, sample: FoundSample) -> list[BadSample]:
    """Lists the unusable questions and other texts of a sample whose name is `shard.tar:key`."""
    questions = [
        BadSample(f"{name}, question {number}", reason, task="question") for number, reason in sample.bad_questions
    ]
    return questions + [
        BadSample(f"{name}, text {number}", str(fault), detail=fault.detail, task=task)
        for number, fault, task in sample.bad_texts
    ]


def regular_shards(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the paths, each of a regular file: no pipe, device, folder or address is ever opened.

    Raises:
        DataError: no path is given, one comes twice, or one is not a file that is there.
    """
    files = [Path(path) for path in paths]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise DataError(f"no such shard: {', '.join(missing[:5])}{more}; `arlow data fetch` gets the real data")
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is not a regular file; name the .tar files themselves")
    if not files:
        raise DataError("no shard is named; `arlow data fetch` gets the real data")
    if twice := [str(path) for path, uses in Counter(files).items() if uses > 1]:
        raise DataError(f"{visible(twice[0])} is named twice; name each shard once")
    return files
