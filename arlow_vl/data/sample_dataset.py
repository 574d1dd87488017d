"""Samples as token ids and images, encoded when they are asked for: what the loader reads and the collate joins."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from arlow_vl.data.bad_items import TextError
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.order import shuffled_order
from arlow_vl.data.prompts import IGNORED, encode_document, encode_messages
from arlow_vl.data.samples import ImageRef, Sample, Text
from arlow_vl.data.token_lengths import TokenLengths, token_lengths
from arlow_vl.errors import DataError
from arlow_vl.models.arlow.chat_arlow import template_of

CACHED_BYTES = 2**26
"""Memory for encoded texts in each process: a template costs a millisecond, and small sets are read many times."""
CACHED_TEXT_BYTES = 256  # that one text takes in the cache beside its ids and labels
CACHED_SAMPLES = 16  # a sample's key, texts and images are asked for one after another
LOOKED_AT = 512
"""Texts of a source that are looked at before a run starts."""


class PlacedImage(NamedTuple):
    """An image of a sample, to be read where it lies."""

    image: ImageRef | bytes
    key: str
    """Key of its sample."""

    @property
    def name(self) -> str:
        return self.key

    @property
    def sha256(self) -> str:
        """Hexadecimal, of its compressed bytes as they were indexed."""
        return self.image.sha256.hex() if isinstance(self.image, ImageRef) else hashlib.sha256(self.image).hexdigest()

    def read_image(self) -> bytes:
        """Reads the compressed bytes. Raises DataError if they are not those that were indexed."""
        return read_image(self.image, self.key)


class EncodedText(NamedTuple):
    """A text as token ids; labels are -100 on what is not learnt."""

    ids: list[int]
    labels: list[int]


class EncodedSample(NamedTuple):
    """Texts and the images that all of them have places for, in their order."""

    texts: list[EncodedText]
    images: list[Any]
    """Images as `Images.prepare` returns them."""


@runtime_checkable
class Images(Protocol):
    """Prepares images one by one, and packs them into image inputs of the model."""

    def prepare(self, image: Any) -> Any: ...

    def pack(self, prepared: Sequence[Any]) -> dict[str, Any]: ...


class SampleDataset:
    """The samples of a source as a `sources.Dataset`; with `one_text` each text of a sample is an item of its own.

    Args:
        max_length: Most tokens of a text; the rest is cut. A text without room for anything to learn is unusable.
    """

    def __init__(
        self, samples: IndexedSamples, tokenizer: Any, images: Images, *, max_length: int, one_text: bool
    ) -> None:
        self.samples, self.tokenizer, self.images = samples, tokenizer, images
        self.max_length = max_length
        self.starts = _text_starts(samples) if one_text else None
        facts = (max_length, one_text, template_of(tokenizer), tokenizer.backend_tokenizer.to_str())
        self.fingerprint = hashlib.sha256(repr((samples.fingerprint, *facts)).encode()).hexdigest()
        self.encoded_texts: dict[tuple[int, int], np.ndarray] = {}  # (2, T) int32: ids, labels
        self._room = CACHED_BYTES
        self.sample = functools.lru_cache(CACHED_SAMPLES)(samples.sample)
        self.token_lengths: TokenLengths | None = None

    def __len__(self) -> int:
        return len(self.samples) if self.starts is None else int(self.starts[-1])

    def __getitem__(self, index: int) -> EncodedSample:
        """Encodes an item. Raises ImageError or TextError if it cannot be used."""
        images = [self.images.prepare(image) for image in self.placed_images(index)]  # first: they cost all its texts
        return EncodedSample(self._texts(self.sample_of(index), self._item(index)[1]), images)

    def placed_images(self, index: int) -> list[PlacedImage]:
        """Returns the images of an item, not yet read."""
        sample, _ = self._item(index)
        return [PlacedImage(image, sample.key) for image in sample.images]

    def sample_of(self, index: int) -> int:
        """Returns the number of an item's sample."""
        return self._number(index)[0]

    def key(self, index: int) -> str:
        """`train-000017.tar:000413`, and `?2` behind it for the third of several questions."""
        number, text = self._number(index)
        sample = self.sample(number)
        return sample.key if text is None else _text_key(sample, text)

    def count_tokens(self, folder: Path, *, workers: int = 1, progress: Any = None) -> None:
        """Counts the tokens of every text, unless that has been done: `length` then tokenises nothing.

        The counts lie beside the index, or in `folder` where that cannot be written.
        """
        beside = [index.folder.parent for index in self.samples.indexes[:1]]
        reporting = {"progress": progress} if progress else {}
        name, length = self.fingerprint, self._length
        self.token_lengths = token_lengths(name, [*beside, folder], len(self), length, workers=workers, **reporting)

    def length(self, index: int) -> tuple[tuple[int, ...], int]:
        """Tokens of each text and the number of images; a text that cannot be used has none."""
        return self._length(index) if self.token_lengths is None else self.token_lengths[index]

    def _length(self, index: int) -> tuple[tuple[int, ...], int]:
        sample, numbers = self._item(index)
        try:
            texts = self._texts(self.sample_of(index), numbers)
        except TextError:  # it is reported when the sample is read
            return (0,) * len(numbers), len(sample.images)
        return tuple(len(text.ids) for text in texts), len(sample.images)

    def _texts(self, number: int, numbers: Sequence[int]) -> list[EncodedText]:
        """Encodes some texts of a sample. An unusable one is empty; raises TextError if no other is usable."""
        texts, fault = [], None
        for text in numbers:
            try:
                texts.append(self.encoded(number, text))
            except TextError as error:
                texts.append(EncodedText([], []))
                fault = error
        if fault is not None and not any(text.ids for text in texts):
            raise fault
        return texts

    def _item(self, index: int) -> tuple[Sample, Sequence[int]]:
        """Returns the sample of an item, and the numbers of its texts that are in the item."""
        number, text = self._number(index)
        sample = self.sample(number)
        return sample, range(len(sample.texts)) if text is None else (text,)

    def _number(self, index: int) -> tuple[int, int | None]:
        """Returns the number of an item's sample, and of its text where each text is an item."""
        if self.starts is None:
            return index, None
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return number, index - int(self.starts[number])

    def encoded(self, number: int, text: int) -> EncodedText:
        """Returns an encoded text. The first ones stay in memory: in random order later ones are no better to keep.

        Raises:
            TextError: nothing of it could be learnt.
        """
        if (kept := self.encoded_texts.get((number, text))) is not None:
            return EncodedText(*kept.tolist())
        encoded = self._encoded(number, text)
        array = np.array(encoded, np.int32)
        if (size := array.nbytes + CACHED_TEXT_BYTES) <= self._room:
            self.encoded_texts[number, text] = array
            self._room -= size
        return encoded

    def _encoded(self, number: int, text: int) -> EncodedText:
        sample = self.sample(number)
        try:
            return encode_text(self.tokenizer, sample.texts[text], self.max_length)
        except ValueError as error:
            raise TextError(_text_key(sample, text), "text_without_room", str(error)) from None

    def look(self, seed: int) -> "Look":
        """Encodes a random draw of the texts, to report before a run what it will meet.

        Raises:
            DataError: none of them leaves room for anything to learn.
        """
        places = np.arange(min(len(self), LOOKED_AT))
        without_room, cut, texts, example = 0, 0, 0, ""
        for index in shuffled_order(seed, "look", 0, len(self), places).tolist():
            number = self.sample_of(index)
            for text in self._item(index)[1]:
                texts += 1
                try:
                    cut += self._is_cut(number, text)
                except TextError as error:
                    without_room, example = without_room + 1, example or str(error)
        if without_room == texts:
            raise DataError(f"no prompt leaves room for a completion; raise max_length ({example})")
        return Look(texts, without_room, cut, is_all=len(self) <= LOOKED_AT)

    def _is_cut(self, number: int, text: int) -> bool:
        if len(self.encoded(number, text).ids) < self.max_length:
            return False
        try:
            whole = encode_text(self.tokenizer, self.sample(number).texts[text], None)
        except ValueError:  # a turn after max_length
            return True
        return any(label != IGNORED for label in whole.labels[self.max_length :])


class Look(NamedTuple):
    """Counts over a draw of the texts of a source."""

    texts: int
    without_room: int
    """Texts whose prompt fills `max_length`: they are not used."""
    cut: int
    """Texts whose end does not fit."""
    is_all: bool

    def warnings(self, max_length: int) -> list[str]:
        """Returns a sentence for each kind of text that will not be learnt whole."""
        drawn = "" if self.is_all else " that were drawn"
        found = {
            f"prompts{drawn} fill max_length {max_length} and are left out": self.without_room,
            f"texts{drawn} are cut at max_length {max_length}": self.cut,
        }
        return [f"{count:,} of {self.texts:,} {what}" for what, count in found.items() if count]


def encode_text(tokenizer: Any, text: Text, max_length: int | None) -> EncodedText:
    """Encodes a conversation by the chat template or a document. Raises ValueError if nothing of it could be learnt."""
    encode, parts = (encode_messages, text.messages) if text.messages else (encode_document, text.document)
    return EncodedText(*encode(tokenizer, parts, max_length=max_length))


def _text_key(sample: Sample, text: int) -> str:
    has_number = len(sample.texts) > 1 or sample.texts[text].task == "question"
    return f"{sample.key}?{text}" if has_number else sample.key


def _text_starts(samples: IndexedSamples) -> np.ndarray:
    """(samples + 1,) int64: the number of texts in front of each sample."""
    counts = [
        sum(index.rows[task][numbers].astype(np.int64) for task in samples.tasks)
        for index in samples.indexes
        for numbers in [index.select(samples.tasks)]
    ]
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
