"""Encoded samples as a batch: texts packed into rows, each a document of its own, and the images that they read."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from arlow_vl.data.prompts import IGNORED
from arlow_vl.data.sample_dataset import EncodedSample, EncodedText, Images
from arlow_vl.data.sources import Batch
from arlow_vl.models.arlow.layout import BatchLayout

Document = tuple[EncodedText, int]
"""A text, and the number in the batch of the sample that it is about."""
LayoutOf = Callable[[Batch], BatchLayout]
"""Function from a batch on the CPU to its layout: which tokens see which."""


def with_counts(batch: Batch, layout_of: LayoutOf | None) -> Batch:
    """Adds what a training step would otherwise have to ask the device for: `layout` and `num_labels`.

    `num_labels` counts the labels that are learnt, without the first of each row, which no token predicts.
    """
    ready = {"num_labels": int((batch["labels"][:, 1:] >= 0).sum())}
    return {**batch, **ready, **({"layout": layout_of(batch)} if layout_of else {})}


class SampleCollate:
    """Collates samples into rows as wide as the longest text, with several texts in a row.

    Captions are far shorter than questions: padded to one length, most of a batch would be padding. Documents are told
    apart by positions that start again, so there is no attention mask; the rest of a row is a document of padding.

    Args:
        layout_of: Makes the `layout` that batches for training carry; None: they have none, and the model computes it.
    """

    def __init__(self, images: Images, *, pad_token_id: int, layout_of: LayoutOf | None = None) -> None:
        self.images = images
        self.pad_token_id = pad_token_id
        self.layout_of = layout_of

    def __call__(self, samples: Sequence[EncodedSample]) -> Batch:
        documents = [(text, number) for number, sample in enumerate(samples) for text in sample.texts if text.ids]
        rows = [[documents[i] for i in row] for row in fit_into_rows([len(text.ids) for text, _ in documents])]
        width = max(sum(len(text.ids) for text, _ in row) for row in rows)
        return self.joined(rows, samples, width)

    def joined(self, rows: Sequence[Sequence[Document]], samples: Sequence[EncodedSample], width: int) -> Batch:
        """Ids, positions and labels, (rows, width) each, and each image once, however many texts read it."""
        texts = [[text for text, _ in row] for row in rows]
        batch = {
            "input_ids": _joined([[text.ids for text in row] for row in texts], self.pad_token_id, width),
            "position_ids": _positions([[len(text.ids) for text in row] for row in texts], width),
            "labels": _joined([[text.labels for text in row] for row in texts], IGNORED, width),
            "num_tokens": sum(len(text.ids) for row in texts for text in row),
            **self._images_of([number for row in rows for _, number in row], samples),
        }
        return with_counts(batch, self.layout_of)

    def _images_of(self, numbers: Iterable[int], samples: Sequence[EncodedSample]) -> Batch:
        """Packs the images in the order in which texts first read them; where some are read again, `image_index` says
        which image each place has."""
        first: dict[int, int] = {}  # the number in the batch of a sample's first image
        images: list[Any] = []
        index: list[int] = []
        for number in numbers:
            if number not in first:
                first[number] = len(images)
                images += samples[number].images
            index += range(first[number], first[number] + len(samples[number].images))
        if not images:
            return {"num_images": 0}
        shared = {"image_index": torch.tensor(index)} if len(index) > len(images) else {}
        return {"num_images": len(images), **shared, **self.images.pack(images)}


class PackedRowsCollate(SampleCollate):
    """Collates rows that the loader has packed, all of one width."""

    def __init__(
        self, images: Images, *, pad_token_id: int, row_tokens: int, layout_of: LayoutOf | None = None
    ) -> None:
        super().__init__(images, pad_token_id=pad_token_id, layout_of=layout_of)
        self.row_tokens = row_tokens

    def __call__(self, rows: Sequence[Sequence[tuple[EncodedSample, Sequence[int] | None]]]) -> Batch:
        samples = [sample for row in rows for sample, _ in row]
        number, documents = itertools.count(), []
        for row in rows:
            documents.append([])
            for sample, chosen in row:
                of = next(number)
                texts = sample.texts if chosen is None else [sample.texts[text] for text in chosen]
                documents[-1] += [(text, of) for text in texts if text.ids]
        return self.joined(documents, samples, self.row_tokens)


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


def _joined(rows: Sequence[Sequence[Sequence[int]]], value: int, width: int) -> torch.Tensor:
    joined = [list(itertools.chain.from_iterable(row)) for row in rows]
    return torch.tensor([row + [value] * (width - len(row)) for row in joined])


def _positions(rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    padded = [[*lengths, width - sum(lengths)] for lengths in rows]
    return torch.tensor([list(itertools.chain.from_iterable(map(range, lengths))) for lengths in padded])
