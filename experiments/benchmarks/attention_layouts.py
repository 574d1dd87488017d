"""Documents of text and images drawn at random, and the forms in which a decoder can be given the same ones."""

from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
from torch import Tensor

IMAGE, PAD, FIRST_WORD, VOCAB = 7, 3, 20, 64
IGNORED = -100
Form = Literal["left padded", "right padded", "packed", "packed, padded", "one at a time"]
FORMS: tuple[Form, ...] = ("left padded", "right padded", "packed", "packed, padded", "one at a time")


@dataclass(frozen=True)
class Document:
    tokens: list[int]
    """Token ids; IMAGE stands for an image."""
    images: list[Tensor]
    """(P, D) encoder tokens of each image, P may be 0."""


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, Tensor]
    """Arguments of `ArlowForCausalLM.forward`."""
    places: dict[int, tuple[int, int]]
    """Row and first column of each document, by its number."""


def random_documents(dice: Random, width: int, shortest_image: int = 0) -> list[Document]:
    """One to four documents; `width` is that of an encoder token.

    `dice` may be hypothesis's: every choice is a `randint` that is simplest at its lower end.
    """
    documents = [_random_tokens(dice) for _ in range(dice.randint(1, 4))]
    values = torch.Generator().manual_seed(dice.randint(0, 2**16))

    def image() -> Tensor:
        return torch.randn(dice.randint(shortest_image, 5), width, generator=values)

    return [Document(tokens, [image() for token in tokens if token == IMAGE]) for tokens in documents]


def _random_tokens(dice: Random) -> list[int]:
    """0 to 8 images, between them runs of 0 to 5 words: groups, runs of one token, documents without an image."""
    tokens: list[int] = []
    for _ in range(dice.randint(0, 8)):
        tokens += [*_words(dice, dice.randint(0, 5)), IMAGE]
    return tokens + _words(dice, dice.randint(0 if tokens else 1, 5))


def _words(dice: Random, count: int) -> list[int]:
    return [dice.randint(FIRST_WORD, VOCAB - 1) for _ in range(count)]


def arranged(documents: list[Document], form: Form) -> list[Batch]:
    """The batches of a form; what one form gives for a document, every form must give."""
    numbers = list(range(len(documents)))
    if form == "one at a time":
        return [batch_of(documents, [[number]]) for number in numbers]
    if form == "packed":
        return [batch_of(documents, [numbers])]
    if form == "packed, padded":
        return [batch_of(documents, [numbers[::2], numbers[1::2]] if len(numbers) > 1 else [numbers])]
    return [batch_of(documents, [[number] for number in numbers], pads_left=form == "left padded")]


def batch_of(documents: list[Document], rows: list[list[int]], pads_left: bool = False) -> Batch:
    """Rows of documents, given by number; positions restart with each, and its first token is no target."""
    width = max(sum(len(documents[n].tokens) for n in row) for row in rows)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "attention_mask": [], "labels": []}
    places = {}
    for index, row in enumerate(rows):
        padding = width - sum(len(documents[n].tokens) for n in row)
        left, right = (padding, 0) if pads_left else (0, padding)
        ids, positions, labels = [PAD] * left, [0] * left, [IGNORED] * left
        for number in row:
            tokens = documents[number].tokens
            places[number] = (index, len(ids))
            ids, positions = [*ids, *tokens], [*positions, *range(len(tokens))]
            labels += [IGNORED, *tokens[1:]]
        columns["input_ids"].append(ids + [PAD] * right)
        columns["position_ids"].append(positions + [0] * right)
        columns["attention_mask"].append([0] * left + [1] * (width - padding) + [0] * right)
        columns["labels"].append(labels + [IGNORED] * right)
    inputs = {name: torch.tensor(values) for name, values in columns.items()}
    if inputs["attention_mask"].all():
        del inputs["attention_mask"]
    if all(len(row) == 1 for row in rows):
        del inputs["position_ids"]
    return Batch(inputs | _image_inputs([image for row in rows for n in row for image in documents[n].images]), places)


def _image_inputs(images: list[Tensor]) -> dict[str, Tensor]:
    """(N, P, D) and its mask. What is masked is large, so that nobody reads it unnoticed."""
    if not images:
        return {}
    longest = max(1, *(len(image) for image in images))
    fill = torch.nn.functional.pad
    padded = [fill(image, (0, 0, 0, longest - len(image)), value=1e3) for image in images]
    lengths = torch.tensor([len(image) for image in images])
    return {
        "encoder_hidden_states": torch.stack(padded),
        "encoder_attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
    }


def decode_steps(batch: Batch, dice: Random) -> list[dict[str, Tensor]]:
    """The calls that feed a left-padded batch to a cache piece by piece; no piece ends inside a group of images."""
    ids, mask = batch.inputs["input_ids"], batch.inputs.get("attention_mask")
    is_image = ids == IMAGE
    inside = (is_image[:, 1:] & is_image[:, :-1]).any(0).tolist()
    cuts = [i + 1 for i, joined in enumerate(inside) if not joined and dice.randint(0, 1)]
    numbers = is_image.flatten().cumsum(0).view_as(ids) - 1
    steps = []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        step = {"input_ids": ids[:, start:end]}
        if mask is not None:
            step["attention_mask"] = mask[:, :end]
        arriving = numbers[:, start:end][is_image[:, start:end]]
        if len(arriving):
            names = ("encoder_hidden_states", "encoder_attention_mask")
            step |= {name: batch.inputs[name][arriving] for name in names}
        steps.append(step)
    return steps
