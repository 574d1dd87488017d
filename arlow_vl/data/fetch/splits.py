"""Splits into train, validation and two tests without leakage: keyed by thing, fixed by hash, clean of near-duplicates.

`test-known` shows new images of things that training knows from other images; nothing of `test-novel` (name,
caption, file family, drawing) is in training.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
from jaxtyping import Bool

from arlow_vl.data.fetch.captions import caption_name
from arlow_vl.data.fetch.images import NEAR_BITS, StoredImage, hash_distances

Split = Literal["train", "validation", "test-known", "test-novel"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test-known", "test-novel")
NOVEL, VALIDATION, KNOWN = 0.08, 0.05, 0.10
FEWEST_BITS = 24


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """Group and split of each image."""

    groups: list[str]
    """Group of each image, by position."""
    splits: list[Split | None]
    """Split of each image; None where it is dropped."""
    dropped: Counter
    """Number of dropped images by reason."""


def plan_splits(images: Sequence[StoredImage]) -> SplitPlan:
    """Groups images by shared names, hashes the groups into splits and drops what would leak."""
    groups = group_by_names([image.origin.names for image in images])
    splits: list[Split | None] = [split_of(group) for group in groups]
    bits = np.stack([image.bits for image in images])
    captions = [caption_name(image.origin.caption) for image in images]
    dropped: Counter = Counter()

    def drop(positions: Iterable[int], reason: str) -> None:
        for position in positions:
            splits[position] = None
            dropped[reason] += 1

    drop(
        repeats([(caption, image.jpeg) for caption, image in zip(captions, images, strict=True)]),
        "repeated",
    )
    faint = is_faint(bits)
    drop(
        [p for p, split in enumerate(splits) if split not in (None, "train") and faint[p]],
        "too plain for a test",
    )
    for position in hold_out_known(images, groups, splits, bits):
        splits[position] = "test-known"
    training = [p for p, split in enumerate(splits) if split == "train"]
    held_out = [p for p, split in enumerate(splits) if split not in (None, "train")]
    near = has_near_duplicate(bits[training], bits[held_out])
    drop([p for p, is_near in zip(training, near, strict=True) if is_near], "near a held-out image")
    known = {(groups[p], captions[p]) for p, split in enumerate(splits) if split == "train"}
    orphans = [p for p, split in enumerate(splits) if split == "test-known" and (groups[p], captions[p]) not in known]
    drop(orphans, "no longer known to training")
    return SplitPlan(groups=groups, splits=splits, dropped=dropped)


def group_by_names(names: Sequence[Sequence[str]]) -> list[str]:
    """Groups what shares a name, directly or through others; a group is named after its smallest first name."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for first, *others in names:
        for other in others:
            parent[root(other)] = root(first)
    smallest: dict[str, str] = {}
    for first, *_ in names:
        smallest[root(first)] = min(first, smallest.get(root(first), first))
    return [smallest[root(first)] for first, *_ in names]


def split_of(group: str) -> Split:
    """Returns the split of a whole group, which its name fixes for good."""
    fraction = hash_fraction(group, "split")
    if fraction < NOVEL:
        return "test-novel"
    return "validation" if fraction < NOVEL + VALIDATION else "train"


def hash_fraction(text: str, purpose: str) -> float:
    """Hashes a text to a number in [0, 1), another one for each purpose."""
    return int.from_bytes(sha256(f"{purpose}\n{text}".encode()).digest()[:8]) / 2**64


def repeats(items: Sequence[Hashable]) -> list[int]:
    """Returns the positions of items that came before."""
    first: dict[Hashable, int] = {}
    return [position for position, item in enumerate(items) if first.setdefault(item, position) != position]


def hold_out_known(
    images: Sequence[StoredImage],
    groups: Sequence[str],
    splits: Sequence[Split | None],
    bits: Bool[np.ndarray, "images bits"],
) -> list[int]:
    """Chooses one image of a tenth of the training groups; training keeps its caption with a clearly other image."""
    members = defaultdict(list)
    for position, (group, split) in enumerate(zip(groups, splits, strict=True)):
        if split == "train" and hash_fraction(group, "known") < KNOWN:
            members[group].append(position)
    chosen = []
    for positions in members.values():
        captions = {p: caption_name(images[p].origin.caption) for p in positions}
        fit = [p for p in positions if _has_clear_mate(p, captions, bits)]
        # The salt is part of the splits as they were drawn.
        chosen += sorted(fit, key=lambda p: hash_fraction(images[p].origin.key, "picture"))[:1]
    return chosen


def _has_clear_mate(position: int, captions: dict[int, str], bits: Bool[np.ndarray, "images bits"]) -> bool:
    """Returns True if another image has the same caption and is no near-duplicate."""
    mates = [p for p, caption in captions.items() if p != position and caption == captions[position]]
    if not mates or is_faint(bits[[position]])[0]:
        return False
    return bool((hash_distances(bits[[position]], bits[mates]) > NEAR_BITS).any())


def is_faint(bits: Bool[np.ndarray, "images bits"]) -> Bool[np.ndarray, " images"]:
    """Marks hashes that say little: plain images and horizontal stripes all have similar ones."""
    set_bits = bits.sum(axis=1)
    return (set_bits < FEWEST_BITS) | (set_bits > bits.shape[1] - FEWEST_BITS)


def has_near_duplicate(
    bits: Bool[np.ndarray, "images bits"], others: Bool[np.ndarray, "others bits"]
) -> Bool[np.ndarray, " images"]:
    """Marks hashes that some hash of `others` is within 12 bits of."""
    if not len(bits) or not len(others):
        return np.zeros(len(bits), dtype=bool)
    return np.asarray((hash_distances(bits, others) <= NEAR_BITS).any(axis=1))
