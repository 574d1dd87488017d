"""Turns the samples of a source into items of a task: images, a prompt, and references."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import Index, IndexedSamples
from arlow_vl.data.index.report import check_left_out
from arlow_vl.data.prompts import without_images
from arlow_vl.data.sample_dataset import PlacedImage
from arlow_vl.data.samples import Message, Part, Sample, Text, about_images
from arlow_vl.data.text_files import shown_source
from arlow_vl.errors import DataError
from arlow_vl.evaluation.tasks.places import TaskData, here_or_address, training_place
from arlow_vl.evaluation.tasks.task import Task
from arlow_vl.printing import print_line, visible

SET_ITSELF = "the set itself (see --training)"


@dataclass(frozen=True)
class Item:
    """One question, or request for a caption, that each system answers."""

    id: str
    image: str
    """Key of the first sample that shares an image with this one, itself or through others; such items are not
    independent and are resampled together."""
    images: tuple[PlacedImage, ...]
    messages: tuple[Message, ...]
    """The prompt, up to the answer."""
    question: str
    """The question as worded in the data; empty for a caption."""
    answers: tuple[str, ...]
    """The texts that a model would be trained on: the captions, or the answer."""
    references: tuple[str, ...]
    """The texts that count as right."""
    kind: str
    """Kind of question, as named in the data; empty if it has none."""

    @functools.cached_property
    def shown(self) -> tuple[str, ...]:
        """SHA-256 of each image."""
        return tuple(image.sha256 for image in self.images)

    @functools.cached_property
    def image_set(self) -> tuple[str, ...]:
        """The same for items that show the same images, in any order."""
        return tuple(sorted(self.shown))

    @property
    def blind(self) -> list[Message]:
        """The prompt without its images."""
        return without_images(self.messages)


def open_samples(task: Task, place: TaskData) -> IndexedSamples:
    """Opens the samples with a text of the task's kind. None is skipped, as scores are of the whole set.

    Raises:
        DataError: there is no such source, it has no text of the kind, or a part of it cannot be used.
    """
    indexes = indexes_of(place.source, images=place.images, format=place.format)
    where = shown_source(place.source)
    check_left_out(indexes, 0.0, where=where)
    samples = IndexedSamples(indexes, (task.kind,))  # type: ignore[arg-type]
    if not len(samples):
        raise DataError(f"{visible(where)}: no sample has a {task.kind}, which task {task.name} asks for")
    return samples


def read_items(task: Task, samples: IndexedSamples) -> list[Item]:
    """Reads the items of all samples, in their order. Raises DataError for an id that occurs twice."""
    items, seen = [], set()
    for position in range(len(samples)):
        for item in items_of(task, samples.sample(position)):
            if item.id in seen:
                raise DataError(f"two items have the id {visible(repr(item.id))}; give each sample a key of its own")
            seen.add(item.id)
            items.append(item)
    return join_by_images(items)


def join_by_images(items: Sequence[Item]) -> list[Item]:
    """Gives items that share images, directly or through others, the `image` of the first of them.

    Of items that show A and B, B and C, D and E, the first two are joined.
    """
    towards: dict[str, str] = {}  # from each image to one of the same group, and so on to one that leads to itself

    def last(image: str) -> str:
        while towards.setdefault(image, image) != image:
            towards[image] = image = towards[towards[image]]
        return image

    for item in items:
        for image in item.shown:
            towards[last(image)] = last(item.shown[0])
    first: dict[str, str] = {}
    names = [first.setdefault(last(item.shown[0]), item.image) if item.images else item.image for item in items]
    return [item if name == item.image else replace(item, image=name) for item, name in zip(items, names, strict=True)]


def share_images(items: Sequence[Item]) -> bool:
    """True if items with different images have one of them in common."""
    seen = [item for item in items if item.images]
    return len({item.image_set for item in seen}) > len({item.image for item in seen})


def items_of(task: Task, sample: Sample) -> Iterator[Item]:
    """Yields the items of a sample: one for all its captions, or one for each question."""
    images = tuple(PlacedImage(image, sample.key) for image in sample.images)
    if task.kind == "caption":
        captions = tuple(_answer(text) for text in sample.texts)
        (prompt, _) = about_images(len(images), question=task.instruction or None, answer="")
        yield Item(sample.key, sample.key, images, (prompt,), "", captions, captions, "")
        return
    for number, text in enumerate(sample.texts):
        answer = _answer(text)
        messages, question = _with_instruction(text.messages[:-1], task.instruction)
        references = text.references or (answer,)
        yield Item(f"{sample.key}?{number}", sample.key, images, messages, question, (answer,), references, text.kind)


def _answer(text: Text) -> str:
    content = text.messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _with_instruction(messages: Sequence[Message], instruction: str) -> tuple[tuple[Message, ...], str]:
    """Returns the prompt with the instruction on a line after the question, and the question as worded in the data."""
    *before, last = messages
    content = last["content"]
    parts: list[Part] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    question = "".join(part["text"] for part in parts if part["type"] == "text")
    if instruction:
        parts.append({"type": "text", "text": f"\n{instruction}"})
    return (*before, {**last, "content": parts}), question


@dataclass(frozen=True)
class PriorData:
    """Data from which text priors are taken, usually those that the model was trained on."""

    source: str | None = None
    """Source of `items`; None: there are none, and priors come from the set itself."""
    items: Sequence[Item] = ()
    """Items with a text of the task's kind."""
    sha256: str | None = None
    compared: str | None = None
    """Source with whose images those of the task are compared."""
    indexes: Sequence[Index] = ()
    """Its indexes of all images, whatever the kind of their texts."""


def read_training(task: Task, data: str | Path, named: str | None) -> PriorData:
    """Reads the data at `training_place`, or where those that the command names have no text of the task's kind, the
    task's own; without any, priors come from the set itself."""
    place = training_place(task, data, named)
    if place is None:
        if task.training:
            place = here_or_address(data)
            where = task.training if isinstance(place, str) else str(place / task.training)
            what = f"the training data of {task.name}; its priors come from {SET_ITSELF}"
            print_line(f"warning: nothing is at {visible(where)}, {what}")
        return PriorData()
    indexes = indexes_of(place.source, images=place.images)
    everything, of_kind = IndexedSamples(indexes), IndexedSamples(indexes, (task.kind,))  # type: ignore[arg-type]
    if len(of_kind):
        return PriorData(place.source, read_items(task, of_kind), everything.fingerprint, place.source, indexes)
    other = PriorData() if named is None else read_training(task, data, None)
    origin = f"{visible(shown_source(other.source))}, as the task says" if other.source else SET_ITSELF
    where = visible(shown_source(place.source))
    print_line(f"warning: no sample of {where} has a {task.kind}; the priors of {task.name} come from {origin}")
    return replace(other, compared=place.source, indexes=indexes)
