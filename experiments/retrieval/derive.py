"""From the demo's shards to shards whose questions carry the captions of the nearest training images.

    question  Similar images: birthday cake; pie; candle.        answer  cake

An image and its own caption stay as they were. `neighbours.jsonl` beside the shards says what each image was given.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from arlow_vl.data.fetch.captions import caption_name
from arlow_vl.data.fetch.images import difference_hash
from arlow_vl.data.fetch.shard_files import Sample, write_shards
from arlow_vl.data.images import CachedImages, cache_sample_images
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.sample_dataset import PlacedImage
from arlow_vl.evaluation.class_means import captions_by_mean
from arlow_vl.progress import ProgressLine
from arlow_vl.training.build import build_vision_language_model
from arlow_vl.training.recipe import ImageTextRecipe
from experiments.retrieval.neighbours import means_for_training, nearest_of_others, nearest_of_training
from vision.transform import ImageTransform
from vision.whole_files import write_whole

SPLITS = ("train", "validation", "test-known", "test-novel")
COUNT, COUNT_OF_MEANS = 3, 5
"""Captions that an image is given, of nearest images and of nearest means."""
MOST_CHARACTERS = 60
"""Characters of a caption in a prompt, at most; one in thirty is longer."""
NEIGHBOURS = "neighbours.jsonl"


@dataclass(frozen=True)
class Split:
    """A part of the demo's captions, sample by sample."""

    keys: list[str]
    """As evaluation names them: shard.tar:key."""
    captions: list[str]
    images: list[PlacedImage]
    features: Float[np.ndarray, "images dim"]
    """Means of the encoder's tokens."""

    @cached_property
    def bits(self) -> Bool[np.ndarray, "images bits"]:
        """Difference hashes, by which near-duplicates are known."""
        return np.stack([difference_hash(image.read_image(), name=image.key) for image in self.images])


def read_splits(data: Path, recipe: ImageTextRecipe) -> tuple[dict[str, Split], CachedImages]:
    """All splits, and the features of their images, which are computed where `recipe.cache_features` lacks them."""
    assert recipe.cache_features is not None
    model: Any = build_vision_language_model(recipe)
    encoder = model.model.vision.requires_grad_(False).eval()
    transform = ImageTransform.from_dict(model.config.vision_config.transform)
    of_split = {split: IndexedSamples(indexes_of(str(data / f"{split}-*.tar")), ("caption",)) for split in SPLITS}
    progress = ProgressLine("encoder features", "images")
    cached = cache_sample_images(
        list(of_split.values()), encoder, transform, recipe.cache_features, on_progress=progress
    )
    return {split: _read_split(samples, cached) for split, samples in of_split.items()}, cached


def _read_split(samples: IndexedSamples, cached: CachedImages) -> Split:
    found = [samples.sample(number) for number in range(len(samples))]
    images = [PlacedImage(sample.images[0], sample.key) for sample in found]
    captions = [sample.texts[0].messages[-1]["content"] for sample in found]
    return Split([sample.key for sample in found], captions, images, cached.mean(images).numpy())


def given_by_images(splits: dict[str, Split], *, whitened: bool, count: int = COUNT) -> dict[str, list[list[str]]]:
    """By split for each image the captions of its nearest training images."""
    train = splits["train"]
    of_split = {
        name: nearest_of_training(train.features, train.captions, train.bits, count, whitened=whitened)
        if name == "train"
        else nearest_of_others(split.features, train.features, train.captions, count, whitened=whitened)
        for name, split in splits.items()
    }
    return {name: [[train.captions[row] for row in rows] for rows in found] for name, found in of_split.items()}


def given_by_means(splits: dict[str, Split], *, count: int = COUNT_OF_MEANS) -> dict[str, list[list[str]]]:
    """By split for each image the training captions whose images lie nearest to it on average; no caption twice."""
    train = splits["train"]
    return {
        name: means_for_training(train.features, train.captions, train.bits, count)
        if name == "train"
        else captions_by_mean(train.features, train.captions, split.features, count)
        for name, split in splits.items()
    }


def derive(splits: dict[str, Split], given: dict[str, list[list[str]]], folder: Path) -> None:
    """Writes shards of every split into `folder`, and last `neighbours.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, split in splits.items():
        write_shards(folder, name, [_sample(split, number, of) for number, of in enumerate(given[name])])
        lines += [
            {"split": name, "image": key, "caption": caption, "given": captions}
            for key, caption, captions in zip(split.keys, split.captions, given[name], strict=True)
        ]
    write_whole(folder / NEIGHBOURS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _sample(split: Split, number: int, given: Sequence[str]) -> Sample:
    caption = split.captions[number]
    return Sample(
        key=split.keys[number].partition(":")[2],
        extension="jpg",
        image=read_image(split.images[number].image, split.keys[number]),
        text=caption,
        fields={"questions": [{"question": question_of(given), "answer": caption}]},
    )


def question_of(given: Sequence[str]) -> str:
    """Returns the prompt that follows the image."""
    return f"Similar images: {'; '.join(map(shortened, given)) or 'none'}."


def shortened(caption: str) -> str:
    """Its first whole words, of which `MOST_CHARACTERS` hold; white space and the full stop at its end go."""
    words = " ".join(caption.split()).rstrip(".")
    return words if len(words) <= MOST_CHARACTERS else words[: MOST_CHARACTERS + 1].rpartition(" ")[0]


def read_neighbours(folder: Path) -> list[dict[str, Any]]:
    """For each image its `split`, key, own `caption`, and the captions that it was `given`, nearest first."""
    return [json.loads(line) for line in (folder / NEIGHBOURS).read_text(encoding="utf-8").splitlines()]


def hits(neighbours: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Shares of images whose caption is the first that they were given, and any of them; by `caption_name`."""
    first = [caption_name(one["caption"]) in [caption_name(given) for given in one["given"][:1]] for one in neighbours]
    some = [caption_name(one["caption"]) in [caption_name(given) for given in one["given"]] for one in neighbours]
    return float(np.mean(first)), float(np.mean(some))
