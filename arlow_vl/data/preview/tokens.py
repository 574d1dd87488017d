"""A text as the tokens that the model gets: which of them are trained or control tokens, and which images each sees."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch

from arlow_vl.data.prompts import IGNORED, decode_token
from arlow_vl.data.sample_dataset import encode_text
from arlow_vl.data.samples import Text
from arlow_vl.models.arlow.chat_arlow import IMAGE_TOKEN, control_tokens
from arlow_vl.models.arlow.documents import document_ids
from arlow_vl.models.arlow.segment_building import build_segment_mask, build_segment_table
from arlow_vl.printing import visible

MOST_SHOWN = 4096
"""Maximum number of tokens of a text on the page."""
REPLACEMENT = "\ufffd"


class Token(NamedTuple):
    text: str
    """Text of the token, with control characters escaped."""
    id: int
    column: int
    kind: str
    """Words that apply among image, control, trained and cut, separated by spaces."""
    ends_line: bool


class TokenRun(NamedTuple):
    """Tokens that see the same images."""

    sees: tuple[int, ...]
    """Numbers of the images that the tokens see, from 0 in the text."""
    tokens: list[Token]


@dataclass(frozen=True)
class ShownText:
    task: str
    kind: str
    runs: list[TokenRun]
    length: int
    """Number of tokens that the model gets."""
    trained: int
    cut: int
    """Number of tokens that did not fit."""
    hidden: int
    """Number of tokens that are not on the page."""
    fault: str | None
    """Reason why the text is not used, in a sentence; None: it is used."""


def shown_text(tokenizer: Any, text: Text, max_length: int, *, sees_all: bool) -> ShownText:
    """Returns a text as training encodes it. `sees_all`: a token sees all images before it, not only the last group."""
    fault, kept = None, None
    try:
        kept = encode_text(tokenizer, text, max_length)
    except ValueError as error:
        fault = visible(str(error))
    try:
        whole = encode_text(tokenizer, text, None).ids
    except ValueError:
        return ShownText(text.task, text.kind, [], 0, 0, 0, 0, fault)
    length = len(kept.ids) if kept else 0
    labels = (kept.labels if kept else []) + [IGNORED] * (len(whole) - length)
    tokens = list(_tokens(tokenizer, whole[:MOST_SHOWN], labels, length))
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    sees = seen_images([id == image for id in whole], sees_all=sees_all)
    runs = [
        TokenRun(of, [token for _, token in group]) for of, group in groupby(zip(sees, tokens, strict=False), _first)
    ]
    trained = sum(label != IGNORED for label in labels)
    hidden = max(0, len(whole) - MOST_SHOWN)
    return ShownText(text.task, text.kind, runs, length, trained, len(whole) - length, hidden, fault)


def _first(pair: tuple[tuple[int, ...], Token]) -> tuple[int, ...]:
    return pair[0]


def _tokens(tokenizer: Any, ids: Sequence[int], labels: Sequence[int], length: int) -> Iterator[Token]:
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    controls = set(tokenizer.convert_tokens_to_ids(list(control_tokens(tokenizer))))
    for column, id in enumerate(ids):
        kinds = {
            "image": id == image,
            "control": id in controls and id != image,
            "trained": labels[column] != IGNORED,
            "cut": column >= length,
        }
        piece = decode_token(tokenizer, id)
        if REPLACEMENT in piece:  # a part of a character: its bytes, as the vocabulary writes them
            piece = str(tokenizer.convert_ids_to_tokens(id))
        yield Token(visible(piece), id, column, " ".join(kind for kind, is_so in kinds.items() if is_so), "\n" in piece)


def seen_images(is_image: Sequence[bool], *, sees_all: bool) -> list[tuple[int, ...]]:
    """Returns, for each token of a text, the numbers of the images that it sees, by the model's own segment table."""
    number = sum(is_image)
    seen: list[tuple[int, ...]] = [()] * len(is_image)
    if not number:
        return seen
    images, lengths = torch.tensor([list(is_image)]), torch.ones(number, dtype=torch.int64)
    documents = document_ids(torch.arange(len(is_image))[None])
    if sees_all:
        mask = build_segment_mask(images, documents, lengths)
        for column in mask.sees[0].expand(len(is_image)).nonzero()[:, 0].tolist():
            entries = mask.mask[0, column].nonzero()[:, 0]
            seen[column] = tuple((entries if mask.key_index is None else mask.key_index[0, entries]).tolist())
        return seen
    table = build_segment_table(images, documents, lengths)
    pool = torch.arange(number) if table.key_index is None else table.key_index
    texts, keys = table.query_runs.cu_seqlens.tolist(), table.key_runs.cu_seqlens.tolist()
    for run in range(len(table.query_runs)):
        for column in table.query_index[texts[run] : texts[run + 1]].tolist():
            seen[column] = tuple(pool[keys[run] : keys[run + 1]].tolist())
    return seen
