"""Samples of a source as items of a task: what is shown, what is asked, and what counts as right."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import Index, IndexedSamples
from arlow_vl.data.index.told import check_left_out
from arlow_vl.data.prompts import without_images
from arlow_vl.data.sample_dataset import PlacedImage
from arlow_vl.data.samples import Message, Part, Sample, Text, about_images
from arlow_vl.errors import DataError
from arlow_vl.evaluation.tasks.places import Place, here_or_address, training_place
from arlow_vl.evaluation.tasks.task import Task
from arlow_vl.printing import print_line, visible


@dataclass(frozen=True)
class Item:
    """One thing that a system answers."""

    id: str
    image: str
    """Key of the first sample that shows these images: what is asked about one image is not independent."""
    images: tuple[PlacedImage, ...]
    messages: tuple[Message, ...]
    """The prompt, up to the answer."""
    question: str
    """As the data word it; empty for a caption."""
    answers: tuple[str, ...]
    """What a model would be trained to say: the captions, or the answer."""
    references: tuple[str, ...]
    kind: str

    @functools.cached_property
    def shown(self) -> tuple[str, ...]:
        """SHA-256 of each image."""
        return tuple(image.sha256 for image in self.images)

    @property
    def blind(self) -> list[Message]:
        """The prompt without its images."""
        return without_images(self.messages)


def open_samples(task: Task, place: Place) -> IndexedSamples:
    """The samples with a text of the task's kind. None is left out: a score is of the whole set.

    Raises:
        DataError: there is no such source, it holds nothing of the kind, or a part of it cannot be used.
    """
    indexes = indexes_of(place.source, images=place.images, format=place.format)
    check_left_out(indexes, 0.0, where=place.source)
    samples = IndexedSamples(indexes, (task.kind,))  # type: ignore[arg-type]
    if not len(samples):
        raise DataError(f"{visible(place.source)}: no sample has a {task.kind}, which task {task.name} asks for")
    return samples


def read_items(task: Task, samples: IndexedSamples) -> list[Item]:
    """The items of all samples, in their order. Raises DataError for an id that comes twice."""
    items, seen = [], set()
    first: dict[tuple[str, ...], str] = {}
    for position in range(len(samples)):
        for item in items_of(task, samples.sample(position)):
            if item.id in seen:
                raise DataError(f"two items have the id {visible(repr(item.id))}; give each sample a key of its own")
            seen.add(item.id)
            image = first.setdefault(tuple(sorted(item.shown)), item.image) if item.images else item.image
            items.append(item if image == item.image else replace(item, image=image))
    return items


def items_of(task: Task, sample: Sample) -> Iterator[Item]:
    """A caption is one item of its sample, each question another."""
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
    """The prompt with the instruction on a line behind the question, and the question as the data have it."""
    *before, last = messages
    content = last["content"]
    parts: list[Part] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    question = "".join(part["text"] for part in parts if part["type"] == "text")
    if instruction:
        parts.append({"type": "text", "text": f"\n{instruction}"})
    return (*before, {**last, "content": parts}), question


@dataclass(frozen=True)
class Training:
    """Data that text priors are taken from, mostly what a model was trained on."""

    source: str | None = None
    items: Sequence[Item] = ()
    """Those with a text of the task's kind."""
    indexes: Sequence[Index] = ()
    """With every image, whatever is said of it."""
    sha256: str | None = None


def read_training(task: Task, data: str | Path, named: str | None) -> Training:
    """What is read at `training_place`."""
    place = training_place(task, data, named)
    if place is None:
        if task.training:
            place = here_or_address(data)
            where = task.training if isinstance(place, str) else str(place / task.training)
            what = f"the training data of {task.name}; its priors come from the set itself (see --training)"
            print_line(f"warning: nothing is at {visible(where)}, {what}")
        return Training()
    indexes = indexes_of(place.source, images=place.images)
    everything, of_kind = IndexedSamples(indexes), IndexedSamples(indexes, (task.kind,))  # type: ignore[arg-type]
    return Training(place.source, read_items(task, of_kind), indexes, everything.fingerprint)
