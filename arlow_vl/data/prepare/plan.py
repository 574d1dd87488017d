"""Assignment of samples to shards: a function of the index and the settings alone."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt64

from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.index.records import compact, refs, text_facts
from arlow_vl.data.samples import Sample
from arlow_vl.data.shard_samples import ReaderLimits
from arlow_vl.errors import DataError

BLOCK = 512
TAR_END = 20 * BLOCK  # the end marker, padded to a whole tar record
MOST_HELD = 40 * 2**20
"""Maximum bytes of texts in a shard: a reader may hold five times as much once they are parsed."""
MOST_SAMPLES = 100_000
"""Maximum number of samples in a shard: a reader takes 500,000 members."""
MAX_TEXT_BYTES = ReaderLimits.max_text_bytes
VALIDATION = "validation"
"""Prefix of the names of shards that are held out for validation."""


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    shard_size: int = 2**28
    """Maximum size of a shard in bytes."""
    samples_per_shard: int | None = None
    """Maximum number of samples in a shard; None: as many as the bytes allow."""
    validation: float = 0.0
    """Share of the images that are for validation, from 0 to 1."""

    def __post_init__(self) -> None:
        if self.shard_size < 2**16:
            raise ValueError(f"a shard has at least 65,536 bytes, got {self.shard_size:,}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"the share for validation is at least 0 and under 1, got {self.validation}")


class PlannedShard(NamedTuple):
    name: str
    positions: Integer[np.ndarray, " samples"]
    """Numbers of the samples, in the order of the shard."""


class ShardPlan(NamedTuple):
    shards: list[PlannedShard]
    too_large: Integer[np.ndarray, " samples"]
    """Numbers of the samples whose texts are over the limit of readers; they are in no shard."""


def plan_shards(samples: IndexedSamples, settings: ShardSettings) -> ShardPlan:
    """Shuffles the samples, so that each shard is a random sample of them, and cuts them into shards.

    Raises:
        DataError: there is no sample, or the share for validation leaves one of the splits empty.
    """
    if not len(samples):
        raise DataError("no usable sample, so there is nothing to write shards of")
    order = _mixed(len(samples))
    rows, texts = samples.rows(np.arange(len(samples))), _text_bytes(samples)
    fits = texts <= MAX_TEXT_BYTES
    held_out = held_out_samples(samples, settings.validation)
    shards: list[PlannedShard] = []
    for split, members in (("train", ~held_out & fits), (VALIDATION, held_out & fits)):
        chosen = order[members[order]]
        if settings.validation and not len(chosen):
            raise DataError(
                f"a share of {settings.validation:g} for validation leaves no sample for {split}; "
                f"there are {len(samples):,}, choose another share"
            )
        for number, part in enumerate(_cut(chosen, rows, texts, settings)):
            shards.append(PlannedShard(f"{split}-{number:06d}.tar", part))
    return ShardPlan(shards, np.flatnonzero(~fits))


def _cut(
    chosen: Integer[np.ndarray, " chosen"],
    rows: Shaped[np.ndarray, " samples"],
    texts: Integer[np.ndarray, " samples"],
    settings: ShardSettings,
) -> Iterator[Integer[np.ndarray, " shard"]]:
    """Yields runs of samples within every limit; a sample that alone is over a limit is a shard of its own."""
    images = rows["images"][chosen].astype(np.int64)
    # An image and a text each have a header and up to a block of padding; there are at most two texts.
    bytes_up_to = np.cumsum(rows["image_bytes"][chosen].astype(np.int64) + texts[chosen] + 2 * BLOCK * (images + 2))
    held_up_to = np.cumsum(texts[chosen])
    most = settings.samples_per_shard or MOST_SAMPLES
    start = done = held = 0
    while start < len(chosen):
        by_bytes = np.searchsorted(bytes_up_to, done + settings.shard_size - TAR_END, side="right")
        by_texts = np.searchsorted(held_up_to, held + MOST_HELD, side="right")
        stop = max(start + 1, min(int(by_bytes), int(by_texts), start + min(most, MOST_SAMPLES)))
        yield chosen[start:stop]
        start, done, held = stop, int(bytes_up_to[stop - 1]), int(held_up_to[stop - 1])


def _text_bytes(samples: IndexedSamples) -> Integer[np.ndarray, " samples"]:
    """Returns the bytes of each record, an upper bound of those of the members with its texts and fields."""
    sizes = []
    for index in samples.indexes:
        offsets = index.rows["offset"].astype(np.int64)
        sizes.append(np.diff(offsets, append=index.header.records_bytes))
        index.close()
    return np.concatenate(sizes)


def _mixed(number: int) -> Integer[np.ndarray, " samples"]:
    """Returns the numbers below `number` in a fixed pseudo-random order."""
    return np.argsort(_scrambled(np.arange(number, dtype=np.uint64)), kind="stable")


def _scrambled(values: UInt64[np.ndarray, " values"]) -> UInt64[np.ndarray, " values"]:
    """Applies the mixing function of splitmix64 (Steele et al., 2014), a bijection."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def held_out_samples(samples: IndexedSamples, share: float) -> Bool[np.ndarray, " samples"]:
    """Returns True for samples that are for validation: those whose images' hash, as a fraction, is below the share.

    Samples that share an image, directly or through others, are in the same split; one without an image goes by its
    texts.
    """
    held_out = np.zeros(len(samples), dtype=bool)
    if not share:
        return held_out
    groups, names = _Groups(), []
    for position in range(len(samples)):
        first, *others = _contents(samples.sample(position))
        for other in others:
            groups.join(first, other)
        names.append(first)
    for position, name in enumerate(names):
        held_out[position] = _fraction(groups.root(name)) < share
    return held_out


class _Groups:
    """Groups of images that samples have in common; only images of samples with several are stored."""

    def __init__(self) -> None:
        self._parents: dict[bytes, bytes] = {}

    def root(self, name: bytes) -> bytes:
        """Returns the smallest name of its group, which does not depend on the order of joining."""
        while (parent := self._parents.get(name, name)) != name:
            self._parents[name] = self._parents.get(parent, parent)
            name = parent
        return name

    def join(self, one: bytes, other: bytes) -> None:
        smaller, larger = sorted((self.root(one), self.root(other)))
        self._parents[larger] = smaller


def _contents(sample: Sample) -> list[bytes]:
    """Returns the hashes that a sample may not share with the other split: of its images, or else of its texts."""
    images = [image.sha256 for image in refs(sample)]
    return images or [hashlib.sha256(compact([text_facts(text) for text in sample.texts])).digest()]


def _fraction(name: bytes) -> float:
    """Returns a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(b"validation\n" + name).digest()[:8]) / 2**64
