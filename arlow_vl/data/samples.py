"""Samples: images and the texts about them. Every format is read as samples, every stage reads them.

a caption                one image, one conversation: [user: <image>] [assistant: caption]
a question               one image, one conversation: [user: <image> question] [assistant: answer]
ten questions of one     one image, ten conversations, each with a place for that image: it is encoded once
a chat                   several images, one conversation of several turns that has a place for each
an interleaved document  several images, one document with a place for each
a plain document         no image, one document
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

MAX_FACT_CHARACTERS = 1000
TextTask = Literal["caption", "question", "conversation", "document"]
TASKS: tuple[TextTask, ...] = ("caption", "question", "conversation", "document")
Message = dict[str, Any]
Part = dict[str, str]
"""`{"type": "image"}` is the place of an image, `{"type": "text", "text": ...}` a piece of text."""


class ImageRef(NamedTuple):
    """Place of the compressed bytes of an image, and their SHA-256."""

    path: str
    """A file, or the address of one."""
    offset: int
    """First byte of the image in the file."""
    size: int
    """Bytes of the image."""
    sha256: bytes = b""
    """SHA-256 of the image, 32 bytes: other bytes at this place are refused. Empty: the image was not read yet."""


@dataclass(frozen=True, slots=True)
class Text:
    """A conversation or a document; its image places take the sample's images in their order, all of them."""

    task: TextTask
    """Task that the text teaches; a source may select some tasks only."""
    messages: tuple[Message, ...] = ()
    """Roles and content as transformers' chat templates take them; empty for a document."""
    document: tuple[Part, ...] = ()
    """A document's pieces and image places; empty for a conversation."""
    references: tuple[str, ...] = ()
    """Answers that count as right, where the data give several; the conversation holds the one to train on."""
    kind: str = ""
    """Groups scores, as "yes/no" does; empty where the data say nothing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Images and every text about them. Each text is a sequence of its own; none sees another."""

    key: str
    """Names the sample to people and is unique in its source."""
    images: tuple[ImageRef | bytes, ...]
    """References to images; bytes where a record holds the image itself, which then has no place of its own."""
    texts: tuple[Text, ...]
    fields: dict[str, Any] = field(default_factory=dict)
    """Other facts in the data about it (source, licence, ids), as `short_facts` keeps them."""


def about_images(number: int, *, question: str | None = None, answer: str) -> tuple[Message, ...]:
    """Returns a user's turn of so many images and, unless the answer is a caption, a question; then the answer."""
    content: list[Part] = [{"type": "image"} for _ in range(number)]
    if question is not None:
        content.append({"type": "text", "text": question})
    return {"role": "user", "content": content}, {"role": "assistant", "content": answer}


def caption_text(caption: str, *, images: int = 1) -> Text:
    """A caption of one image, or of several together."""
    return Text("caption", about_images(images, answer=caption))


def short_facts(fields: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """Keeps the fields that are numbers JSON can write or strings of at most 1,000 characters: no copy of the data."""

    def is_fact(value: Any) -> bool:
        if isinstance(value, str):
            return len(value) <= MAX_FACT_CHARACTERS
        return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))

    return {name: value for name, value in fields.items() if name not in without and is_fact(value)}
