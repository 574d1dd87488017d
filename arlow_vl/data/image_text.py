"""Captions and questions about the images of shards, as what is evaluated asks them."""

from collections.abc import Iterable
from typing import NamedTuple

from arlow_vl.data.prompts import about_image
from arlow_vl.data.samples import Message
from arlow_vl.data.shards import ShardSample


class Example(NamedTuple):
    """An image and a conversation about it, whose last message is what the model is to write."""

    sample: ShardSample
    messages: list[Message]
    question: int | None = None
    """Which of the sample's questions it is, from 0; None: the caption."""

    @property
    def key(self) -> str:
        return self.sample.name if self.question is None else f"{self.sample.name}?{self.question}"

    @property
    def prompt(self) -> list[Message]:
        """What the model is asked."""
        return self.messages[:-1]


def caption_examples(samples: Iterable[ShardSample]) -> list[Example]:
    return [Example(sample, about_image(answer=sample.text)) for sample in samples]


def question_examples(samples: Iterable[ShardSample]) -> list[Example]:
    """An example for each question of each sample."""
    return [
        Example(sample, about_image(entry.question, entry.answer), number)
        for sample in samples
        for number, entry in enumerate(sample.questions)
    ]
