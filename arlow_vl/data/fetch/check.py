"""Proof, on the finished files, that no test or validation image leaks into training."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from arlow_vl.data.fetch.captions import caption_name
from arlow_vl.data.fetch.images import NEAR_BITS, WORKERS, difference_hash, hash_distances
from arlow_vl.data.fetch.shard_files import shards_of
from arlow_vl.data.fetch.splits import SPLITS
from arlow_vl.data.fetch.text import normalised
from arlow_vl.data.formats.webdataset import read_whole
from arlow_vl.data.index.images import read_image
from arlow_vl.data.samples import Sample
from arlow_vl.data.text import LineTally, read_jsonl
from arlow_vl.errors import DataError

HELD_OUT = ("validation", "test-known", "test-novel")


def check_splits(root: Path) -> dict[str, int]:
    """Reads the captions and text under `root` as training does; returns the samples of each split.

    Raises:
        DataError: groups, captions or (near-)duplicate images are on both sides, or a held-out caption is a whole
            line of the text corpus.
    """
    splits: dict[str, list[Sample]] = {split: read_whole(shards_of(root / "captions", split)) for split in SPLITS}
    check_groups({split: {sample.fields["group"] for sample in samples} for split, samples in splits.items()})
    _check_captions(splits)
    _check_images(splits)
    _check_text(root / "text", {normalised(caption_of(sample)) for split in HELD_OUT for sample in splits[split]})
    return {split: len(samples) for split, samples in splits.items()}


def caption_of(sample: Sample) -> str:
    """Returns the caption, which is the first text of a sample."""
    caption = sample.texts[0]
    assert caption.task == "caption"
    return caption.messages[-1]["content"]


def check_groups(groups: dict[str, set[str]]) -> None:
    """Raises DataError unless training shares groups with test-known alone, and test-known has no others."""
    for one, other in (("train", "validation"), ("train", "test-novel"), ("validation", "test-novel")):
        if both := groups[one] & groups[other]:
            raise DataError(
                f"captions: group {min(both)!r} is in {one} and in {other}; delete data/captions and fetch again"
            )
    if unknown := groups["test-known"] - groups["train"]:
        raise DataError(
            f"captions: group {min(unknown)!r} of test-known is not in train; delete data/captions and fetch again"
        )


def _check_captions(splits: dict[str, list[Sample]]) -> None:
    trained = {caption_name(caption_of(sample)) for sample in splits["train"]}
    for sample in splits["test-novel"]:
        if caption_name(caption_of(sample)) in trained:
            raise DataError(f"captions: {sample.key} of test-novel has a caption of training ({caption_of(sample)!r})")


def _check_images(splits: dict[str, list[Sample]]) -> None:
    train_bits = hashes(splits["train"])
    for split in HELD_OUT:
        distances = hash_distances(train_bits, hashes(splits[split]))
        if (distances <= NEAR_BITS).any():
            row, column = np.unravel_index(distances.argmin(), distances.shape)
            pair = f"{splits['train'][row].key} and {splits[split][column].key}"
            raise DataError(f"captions: {pair} are nearly the same image ({distances[row, column]} of 256 bits differ)")


def hashes(samples: Sequence[Sample]) -> Bool[np.ndarray, "samples 256"]:
    with ThreadPoolExecutor(WORKERS) as pool:
        return np.stack(list(pool.map(_hash, samples)))


def _hash(sample: Sample) -> Bool[np.ndarray, " 256"]:
    return difference_hash(read_image(sample.images[0], sample.key), name=sample.key)


def _check_text(folder: Path, captions: set[str]) -> None:
    for path in (folder / "train.jsonl", folder / "validation.jsonl"):
        for text in read_jsonl(path, LineTally()):
            if both := captions & {normalised(line) for line in text.splitlines()}:
                raise DataError(f"{path}: a whole line is the caption {min(both)!r} of a held-out image")
