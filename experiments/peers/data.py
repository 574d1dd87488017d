"""Training and test data of all models: scenes of twelve things without words, whose images are encoded once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arlow_vl.data.prompts import IGNORED, about_image, encode_messages, encode_prompt
from arlow_vl.data.scenes.drawings import Drawings
from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.grammar import caption_of
from arlow_vl.data.scenes.paint import Painter
from arlow_vl.data.scenes.questions import QuestionAnswer
from arlow_vl.data.scenes.samples import make_twins
from arlow_vl.data.scenes.scene import Scene
from arlow_vl.data.scenes.splits import Split
from arlow_vl.data.scenes.vocabulary import NOUNS
from arlow_vl.progress import ProgressLine
from vision.encoder import VisionEncoder
from vision.features import FeatureCache, encoder_fingerprint
from vision.transform import ImageTransform

THINGS = 12
"""Things in use, of 32; with so few steps, more would leave all models near zero."""
KINDS = ("presence", "colour", "count", "relation")
SEED = 0
"""Seed of the scenes, not of training."""


class Shown(NamedTuple):
    """An image with its scene and questions."""

    image: str
    """SHA-256 of its PNG."""
    scene: Scene
    asked: tuple[QuestionAnswer, ...]
    """At most one question of each of `KINDS`."""

    @property
    def caption(self) -> str:
        return caption_of(self.scene)


class Item(NamedTuple):
    """A caption or a question with its answer, as ids."""

    image: str
    ids: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """A batch with a row for each item, padded on the right."""

    input_ids: Int[Tensor, "batch text"]
    labels: Int[Tensor, "batch text"]
    features: Float[Tensor, "batch images patches features"]


@dataclass(frozen=True)
class Data:
    """Data that all models share."""

    splits: dict[str, list[Shown]]
    features: FeatureCache
    tokenizer: Any
    captions: list[Item]
    """Captions of the training split."""
    questions: list[Item]
    """Questions of the training split."""
    validation: list[Item]
    """Captions and questions of the validation split."""
    width: int
    """Width of the features."""
    side: int
    """Number of rows, and of columns, of patches."""

    def batch(self, items: Sequence[Item]) -> Batch:
        width, pad = max(len(item.ids) for item in items), self.tokenizer.pad_token_id
        ids = torch.tensor([item.ids + [pad] * (width - len(item.ids)) for item in items])
        labels = torch.tensor([item.labels + [IGNORED] * (width - len(item.labels)) for item in items])
        return Batch(ids, labels, self.images([item.image for item in items]))

    def images(self, names: Sequence[str]) -> Float[Tensor, "batch images patches features"]:
        """Returns features with one image per row."""
        return self.features.get(names)["image_features"][:, None]

    def prompts(self, questions: Iterable[str | None]) -> list[list[int]]:
        """Encodes prompts, up to where the answer begins; None asks for a caption."""
        return [encode_prompt(self.tokenizer, about_image(question)) for question in questions]


def make_data(
    drawings: Drawings, encoder: VisionEncoder, transform: ImageTransform, tokenizer: Any, folder: Path, sizes: dict
) -> Data:
    """Paints the scenes, encodes images that `folder` lacks, and tokenises training and validation.

    Args:
        sizes: Number of images of each split.
    """
    painted = {split: paint(drawings, split, count) for split, count in sizes.items()}
    images = {shown.image: png for some in painted.values() for shown, png in some}
    cache = FeatureCache(folder, encoder_fingerprint(encoder, transform))
    missing = [(name, png) for name, png in images.items() if name not in cache]
    cache.fill(missing, encoder, transform, count=len(missing), on_progress=ProgressLine("encoder features", "images"))
    splits = {split: [shown for shown, _ in some] for split, some in painted.items()}
    captions, questions = captions_of(tokenizer, splits["train"]), questions_of(tokenizer, splits["train"])
    validation = captions_of(tokenizer, splits["validation"]) + questions_of(tokenizer, splits["validation"])
    side = round(encoder.num_patches**0.5)
    return Data(splits, cache, tokenizer, captions, questions, validation, encoder.embed_dim, side)


def paint(drawings: Drawings, split: Split, count: int) -> list[tuple[Shown, bytes]]:
    """Paints `count` images, returned with their PNGs; twins of which one shows a word are left out."""
    painter = Painter({noun: its for noun, its in drawings.of(split).items() if noun in NOUNS[:THINGS]})
    found, number = [], 0
    while len(found) < count:
        twins = make_twins(painter, SEED, split, number).painted
        number += 1
        if any(painted.scene.word is not None for painted in twins):
            continue
        draws = Draws("peers", SEED, split, number)
        for painted in twins:
            asked = tuple(one_of_each_kind(draws, painted.asked))
            found.append((Shown(sha256(painted.png).hexdigest(), painted.scene, asked), painted.png))
    return found[:count]


def one_of_each_kind(draws: Draws, asked: Iterable[QuestionAnswer]) -> Iterator[QuestionAnswer]:
    asked = list(asked)
    for kind in KINDS:
        if of_kind := [one for one in asked if one.kind == kind]:
            yield draws.choose(of_kind)


def captions_of(tokenizer: Any, split: Iterable[Shown]) -> list[Item]:
    return [Item(one.image, *encode_messages(tokenizer, about_image(answer=one.caption))) for one in split]


def questions_of(tokenizer: Any, split: Iterable[Shown]) -> list[Item]:
    asked = [(shown.image, about_image(one.question, one.answer)) for shown in split for one in shown.asked]
    return [Item(image, *encode_messages(tokenizer, messages)) for image, messages in asked]
