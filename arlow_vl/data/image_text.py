"""Images with text: captions and questions out of shards, and the batches that a vision-language model takes."""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from arlow_vl.data.loader import Batch
from arlow_vl.data.prompts import IGNORED, Message, about_image, encode_messages, encode_prompt
from arlow_vl.data.shards import ShardSample, ShardScan
from vision.encoder import VisionEncoder
from vision.features import FeatureCache, encoder_fingerprint
from vision.forms.batches import pack_images, prepare_image
from vision.forms.tiling import Tiles
from vision.transform import ImageTransform

CACHED_EXAMPLES = 2**15  # rendering a template costs a millisecond, and small sets are read many times


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


class EncodedExample(NamedTuple):
    """An example as token ids; labels are -100 on the prompt."""

    ids: list[int]
    labels: list[int]
    image: Any
    """As the dataset's images prepare it."""


def caption_examples(samples: Iterable[ShardSample]) -> list[Example]:
    return [Example(sample, about_image(answer=sample.text)) for sample in samples]


def question_examples(samples: Iterable[ShardSample]) -> list[Example]:
    """An example for each question of each sample."""
    return [
        Example(sample, about_image(entry.question, entry.answer), number)
        for sample in samples
        for number, entry in enumerate(sample.questions)
    ]


EXAMPLES: dict[str, Callable[[Iterable[ShardSample]], list[Example]]] = {
    "captions": caption_examples,
    "questions": question_examples,
}


def with_room(examples: Iterable[Example], tokenizer, max_length: int) -> list[Example]:
    """The examples whose prompt leaves room for an answer."""
    prompt_length = _prompt_lengths(tokenizer)
    return [example for example in examples if prompt_length(example) < max_length]


def count_cut(examples: Iterable[Example], tokenizer, max_length: int) -> int:
    """The number of examples `with_room` whose answer does not fit: its end is cut off in training."""
    prompt_length = _prompt_lengths(tokenizer)

    def is_cut(example: Example) -> bool:
        # No token is shorter than a byte, so that only what might be cut is tokenised; one more is the answer's end.
        if prompt_length(example) + len(example.messages[-1]["content"].encode()) + 1 <= max_length:
            return False
        _, labels = encode_messages(tokenizer, example.messages)
        return any(label != IGNORED for label in labels[max_length:])

    return sum(map(is_cut, examples))


def _prompt_lengths(tokenizer) -> Callable[[Example], int]:
    """Tokens of an example's prompt; a wording that comes again is not encoded again."""
    lengths: dict[str, int] = {}

    def length_of(example: Example) -> int:
        wording = repr(example.prompt)
        if wording not in lengths:
            lengths[wording] = len(encode_prompt(tokenizer, example.prompt))
        return lengths[wording]

    return length_of


class DecodedImages:
    """Pixels, decoded from the shards for every batch."""

    def __init__(self, transform: ImageTransform) -> None:
        self.transform = transform

    def prepare(self, sample: ShardSample) -> Tensor | Tiles:
        """Raises ImageError, naming the sample."""
        return prepare_image(self.transform, sample.read_image(), name=sample.name)

    def pack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """The image inputs of the model."""
        return pack_images(self.transform, prepared)

    def __call__(self, samples: Sequence[ShardSample]) -> dict[str, Tensor]:
        return self.pack([self.prepare(sample) for sample in samples])


class CachedImages:
    """What a frozen encoder made of the images, read from a cache that has been filled."""

    def __init__(self, cache: FeatureCache, sha256_of: Mapping[tuple[Path, str], str]) -> None:
        self.cache = cache
        self.sha256_of = sha256_of  # by shard and key

    def prepare(self, sample: ShardSample) -> str:
        return self.sha256_of[sample.shard, sample.key]

    def pack(self, prepared: Sequence[str]) -> dict[str, Tensor]:
        return self.cache.get(prepared)

    def __call__(self, samples: Sequence[ShardSample]) -> dict[str, Tensor]:
        return self.pack([self.prepare(sample) for sample in samples])

    def mean(self, samples: Sequence[ShardSample]) -> Float[Tensor, "images features"]:
        """The mean of each image's patch tokens."""
        return self.cache.mean([self.prepare(sample) for sample in samples])


class ImageTextDataset:
    """Examples `with_room`, encoded when asked for by the chat template of the tokenizer."""

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer,
        images: DecodedImages | CachedImages,
        *,
        max_length: int,
    ) -> None:
        self.examples = examples
        self.tokenizer = tokenizer
        self.images = images
        self.max_length = max_length
        facts = (max_length, tokenizer.chat_template, tokenizer.backend_tokenizer.to_str())
        digest = hashlib.sha256(repr(facts).encode())
        for example in examples:
            digest.update(repr((example.key, example.sample.image_size, example.messages)).encode())
        self.fingerprint = digest.hexdigest()
        self.encoded = functools.lru_cache(CACHED_EXAMPLES)(self._encoded)

    def __len__(self) -> int:
        return len(self.examples)

    def _encoded(self, index: int) -> tuple[list[int], list[int]]:
        return encode_messages(self.tokenizer, self.examples[index].messages, max_length=self.max_length)

    def __getitem__(self, index: int) -> EncodedExample:
        """Raises ImageError for an image that cannot be used."""
        ids, labels = self.encoded(index)
        return EncodedExample(ids, labels, self.images.prepare(self.examples[index].sample))

    def key(self, index: int) -> str:
        return self.examples[index].key


def cache_images(
    scans: Sequence[ShardScan],
    encoder: VisionEncoder,
    transform: ImageTransform,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    on_progress: Callable[[int, int], None] | None = None,
) -> CachedImages:
    """Encodes what the cache lacks. Samples with an unusable image become skipped ones of their scan."""
    cache = FeatureCache(folder, encoder_fingerprint(encoder, transform), dtype=dtype)
    sha256_of: dict[tuple[Path, str], str] = {}

    def images() -> Iterator[tuple[str, bytes]]:
        for sample in (sample for scan in scans for sample in scan.samples):
            data = sample.read_image()
            sha256_of[sample.shard, sample.key] = hashlib.sha256(data).hexdigest()
            yield sha256_of[sample.shard, sample.key], data

    count = sum(len(scan.samples) for scan in scans)
    refused = cache.fill(images(), encoder, transform, count=count, on_progress=on_progress)

    def image_fault(sample: ShardSample) -> str | None:
        reason = refused.get(sha256_of[sample.shard, sample.key])
        return f"image_{reason}" if reason else None

    for scan in scans:
        scan.drop(image_fault)
    return CachedImages(cache, sha256_of)


class ImageTextCollate:
    """Examples packed into rows as long as the longest, each a document of its own, with an image each.

    Captions are far shorter than questions: padded to one length, most of a batch would be padding. Documents are told
    apart by positions that start again, so there is no attention mask; what is left of a row is a document of padding.
    """

    def __init__(self, images: DecodedImages | CachedImages, *, pad_token_id: int) -> None:
        self.images = images
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[EncodedExample]) -> Batch:
        rows = fit_into_rows([len(example.ids) for example in examples])
        packed = [[examples[i] for i in row] for row in rows]
        width = max(sum(len(example.ids) for example in row) for row in packed)
        return {
            "input_ids": _joined([[e.ids for e in row] for row in packed], self.pad_token_id, width),
            "position_ids": _positions([[len(e.ids) for e in row] for row in packed], width),
            "labels": _joined([[e.labels for e in row] for row in packed], IGNORED, width),
            "num_tokens": sum(len(example.ids) for example in examples),
            "num_images": len(examples),
            **self.images.pack([example.image for row in packed for example in row]),
        }


def fit_into_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the items of each row, longest first into the first row with room; rows are as long as the longest."""
    room_of_row: list[int] = []
    rows: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, room in enumerate(room_of_row) if room >= lengths[item]), len(rows))
        if row == len(rows):
            rows.append([])
            room_of_row.append(max(lengths))
        rows[row].append(item)
        room_of_row[row] -= lengths[item]
    return rows


def _joined(rows: Sequence[Sequence[Sequence[int]]], value: int, width: int) -> Any:
    joined = [list(itertools.chain.from_iterable(row)) for row in rows]
    return torch.tensor([row + [value] * (width - len(row)) for row in joined])


def _positions(rows: Sequence[Sequence[int]], width: int) -> Any:
    padded = [[*lengths, width - sum(lengths)] for lengths in rows]
    return torch.tensor([list(itertools.chain.from_iterable(map(range, lengths))) for lengths in padded])
