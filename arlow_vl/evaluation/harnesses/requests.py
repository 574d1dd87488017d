"""Answers the requests of harnesses: generates after prompts, and computes log-probabilities of given continuations.

Requests are processed in chunks, so that the images of a benchmark are never all in memory. The lengths of all are
checked before the first chunk, so that one that is too long does not end a run after hours.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image

from arlow_vl.data.prompts import plain_ids
from arlow_vl.data.samples import Part
from arlow_vl.evaluation.likelihood import Candidate, Likelihood, likelihoods
from arlow_vl.models.arlow.chat_arlow import IMAGE_TOKEN
from arlow_vl.printing import number_of
from arlow_vl.progress import ProgressLine
from arlow_vl.serving.assistant import Assistant, PreparedImage, Prompt
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.writing import write
from vision.decoding.sources import read_image

AT_ONCE = 256
"""Number of requests whose images are in memory together."""
# Names of decoding options in the harnesses.
MAX_NEW_TOKENS = ("max_new_tokens", "max_gen_toks", "max_tokens")
STOP = ("until", "stop")
SAMPLING = ("top_p", "top_k")
OTHERS = ("num_beams", "repetition_penalty")
logger = logging.getLogger(__name__)
T = TypeVar("T")


class Request(NamedTuple):
    """A prompt of a harness."""

    ids: Sequence[int]
    images: Sequence[Any] = ()
    """One for each `<image>` in `ids`, as the harness passes them."""
    name: str = "request"
    """Name in error messages."""


@dataclass(frozen=True)
class Converted:
    """Requests of a harness, converted each time they are gone through, so that their images are not kept."""

    requests: Sequence[Any]
    convert: Callable[[Any], tuple]

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[tuple]:
        return map(self.convert, self.requests)


def open_assistant(pretrained: str, *, device: str | None = None, dtype: str | None = None) -> Assistant:
    """Opens the model of a folder; takes options under the names that harnesses use.

    Raises:
        CheckpointError: the folder holds no usable model, or the device cannot be used.
    """
    precision = None if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
    return Assistant.open(Path(pretrained), device=device or "auto", precision=precision)


class HarnessModel:
    """Base of the models for lm-eval and lmms-eval, which construct them with the same options.

    Args:
        pretrained: The model folder.
        device: As torch names it; None: the first accelerator, else the CPU.
        dtype: The weights' type: float32, bfloat16 or float16; "auto": as they were saved.
        batch_size: Prompts or continuations in a batch.
        max_batch_size: Not used; both harnesses pass it for their "auto".
    """

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.assistant = open_assistant(pretrained, device=device, dtype=dtype)
        self.batch_size = batch_size_of(batch_size)


def batch_size_of(value: Any) -> int:
    """Parses a batch size. Raises ValueError for anything but a positive number, such as lm-eval's "auto"."""
    if not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"batch_size is a whole number from 1 on, got {value}; give the number of prompts in a batch")
    return int(value)


def decoding_of(settings: Mapping[str, Any], *, max_new_tokens: int) -> Decoding:
    """Converts a harness's generation arguments; warns about those without an equivalent, and ignores them.

    Raises:
        ValueError: a value is out of its range.
    """
    known = {name: value for name, value in settings.items() if value is not None}
    for name in known.keys() - {*MAX_NEW_TOKENS, *STOP, *SAMPLING, *OTHERS, "do_sample", "temperature"}:
        _say_once(f"the generation argument {name} is not known to Arlow and was not followed")
    found: dict[str, Any] = {name: known[name] for name in OTHERS if name in known}
    temperature = float(known.get("temperature", 1.0 if known.get("do_sample") else 0.0))
    if known.get("do_sample", True) and temperature > 0:
        found |= {"temperature": temperature} | {name: known[name] for name in SAMPLING if name in known}
    stop = next((known[name] for name in STOP if known.get(name)), ())
    texts = (stop,) if isinstance(stop, str) else tuple(stop)
    longest = next((known[name] for name in MAX_NEW_TOKENS if name in known), max_new_tokens)
    return Decoding(max_new_tokens=int(longest), stop=tuple(filter(None, texts)), **found)


def answers(
    assistant: Assistant, requests: Converted | Sequence[tuple[Request, Decoding]], *, batch_size: int
) -> list[str]:
    """Generates a text after each prompt, without special tokens. What is drawn follows `torch.manual_seed`.

    Raises:
        ValueError: a prompt with images leaves no room for an answer.
        ImageError: an image cannot be used.
        CheckpointError: the model's logits are not finite.
    """

    def fitted(request: Request, decoding: Decoding) -> tuple[int, ...]:
        return _fitting(assistant, request, _room_before(assistant, request, decoding.max_new_tokens))

    def some(chunk: list[tuple[Request, Decoding]]) -> list[str]:
        prepared = _Images(assistant)
        prompts = [Prompt(fitted(request, decoding), prepared.of(request)) for request, decoding in chunk]
        found: dict[int, str] = {}
        order = sorted(range(len(chunk)), key=lambda place: repr(chunk[place][1]))
        for decoding, places in groupby(order, key=lambda place: chunk[place][1]):
            places = list(places)
            written = write(
                assistant,
                [prompts[place] for place in places],
                decoding,
                batch_size=batch_size,
                dice=torch.default_generator,  # harnesses seed it
            )
            found |= {place: one.text for place, one in zip(places, written, strict=True)}
        return [found[place] for place in range(len(chunk))]

    return _by_chunks(requests, fitted, some, ProgressLine("writing", "answers"))


def log_probabilities(
    assistant: Assistant, candidates: Converted | Sequence[tuple[Request, Sequence[int]]], *, batch_size: int
) -> list[Likelihood]:
    """Computes the log-probability of each continuation. A text prompt that is too long loses its beginning.

    Raises:
        ValueError: a continuation has no token or is longer than the model, or a prompt with images is too long.
        ImageError: an image cannot be used.
        CheckpointError: the model's logits are not finite.
    """

    def fitted(request: Request, ids: Sequence[int]) -> tuple[int, ...]:
        if not 0 < len(ids) <= assistant.max_length:
            raise ValueError(
                f"{request.name}: a continuation has from 1 to {assistant.max_length:,} tokens, got {len(ids):,}; "
                "leave it out"
            )
        return _fitting(assistant, request, assistant.max_length + 1 - len(ids))

    def some(chunk: list[tuple[Request, Sequence[int]]]) -> list[Likelihood]:
        prepared = _Images(assistant)
        rows = [Candidate(fitted(request, ids), prepared.of(request), ids) for request, ids in chunk]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].prompt))
        in_order = [rows[place] for place in order]
        pad = assistant.tokenizer.pad_token_id
        found = likelihoods(assistant.model, pad, in_order, assistant.pack, batch_size=batch_size)
        return [one for _, one in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]

    return _by_chunks(candidates, fitted, some, ProgressLine("scoring", "continuations"))


def interleaved(text: str, images: int, *, name: str) -> list[Part]:
    """Splits a text at its `<image>`s into text and image parts; if it has none, the images come first.

    Raises:
        ValueError: the text has another number of `<image>`s than there are images.
    """
    places = text.count(IMAGE_TOKEN) if images else 0
    if not places:
        return [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    if places != images:
        raise ValueError(
            f"{name}: the text has {places} {IMAGE_TOKEN} and {number_of(images, 'image')} came; give one for each"
        )
    first, *others = text.split(IMAGE_TOKEN)
    parts: list[Part] = [{"type": "text", "text": first}]
    for other in others:
        parts += [{"type": "image"}, {"type": "text", "text": other}]
    return [part for part in parts if part["type"] == "image" or part["text"]]


def document_ids(assistant: Assistant, parts: Sequence[Part]) -> list[int]:
    """Encodes text and images, begun as the tokenizer begins a text; text never becomes control tokens."""
    tokenizer, ids = assistant.tokenizer, list(assistant.text_prefix)
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    for part in parts:
        ids += [image] if part["type"] == "image" else plain_ids(tokenizer, [part["text"]])[0]
    return ids


def begin_turn(answer: str) -> str:
    """Returns an answer without the space that harnesses put between it and its question: in training no turn begins
    with one."""
    return answer.lstrip()


class _Images:
    """Preprocesses images; those with the same pixels, as the model is shown them, are shared between requests."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant
        self.prepared: dict[Any, PreparedImage] = {}

    def of(self, request: Request) -> tuple[PreparedImage, ...]:
        return tuple(self._prepare(image, request.name) for image in request.images)

    def _prepare(self, source: Any, name: str) -> PreparedImage:
        if isinstance(source, Image.Image):  # palette, transparency, profile and EXIF count, too
            source = read_image(source, name=name)
            key = source.size, hashlib.sha256(source.tobytes()).digest()
        else:
            key = source if isinstance(source, str | bytes) else id(source)
        if key not in self.prepared:
            self.prepared[key] = self.assistant.image(source, name=name)
        return self.prepared[key]


def _fitting(assistant: Assistant, request: Request, room: int) -> tuple[int, ...]:
    """Cuts a prompt to its last `room` tokens. Raises ValueError if that would lose an image."""
    ids = list(request.ids)
    if len(ids) > room:
        if request.images:
            raise ValueError(
                f"{request.name}: the prompt has {number_of(len(ids), 'token')} and {room:,} fit; cutting it would "
                f"lose an image; the model reads {assistant.max_length:,} tokens, those after the prompt included"
            )
        _say_once(f"prompts of more than {room:,} tokens lost their beginning, for the model reads no more")
        ids = ids[-room:]
    return tuple(ids)


def _room_before(assistant: Assistant, request: Request, max_new_tokens: int) -> int:
    """Returns the number of tokens available to a prompt.

    A text prompt leaves room for the answer, but has at least half of the model's length; one with images, all but one.
    """
    length = assistant.max_length
    return length - 1 if request.images else max(length - max_new_tokens, length // 2)


def _by_chunks(
    items: Converted | Sequence[tuple],
    fitted: Callable[..., Any],
    some: Callable[[list[Any]], list[T]],
    progress: ProgressLine,
) -> list[T]:
    for item in items:
        fitted(*item)
    iterator: Iterator[Any] = iter(items)
    found: list[T] = []
    while chunk := list(islice(iterator, AT_ONCE)):
        found += some(chunk)
        if len(items) > 1:  # VLMEvalKit sends requests one by one and shows its own progress
            progress(len(found), len(items))
    return found


_said: set[str] = set()


def _say_once(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        logger.warning(sentence)
