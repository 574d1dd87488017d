# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Layout of a batch of whole rows: the text and images that each token sees, found where the batch is made.

A model that is given it reads no value of the batch, so its forward pass waits for no device.
"""

from dataclasses import dataclass

from torch import Tensor

from .attention import TextRuns
from .configuration_arlow import ArlowConfig
from .documents import document_ids, has_packed_rows
from .runs import Movable
from .segment_building import build_segments
from .segments import SegmentMask, SegmentTable


@dataclass(frozen=True)
class BatchLayout(Movable):
    """The text and images that each token sees, in B rows of T tokens. `to` moves it to a device."""

    documents: Tensor
    """(B, T) int64 from `document_ids`."""
    is_packed: bool
    """True: a row holds several documents."""
    text_runs: TextRuns
    """The documents as runs, for a varlen kernel."""
    segments: SegmentTable | SegmentMask | None
    """None: there is no image."""
    encoder_tokens: int = 0
    """Encoder tokens of all images, each image counted once."""

    @classmethod
    def of_batch(
        cls,
        config: ArlowConfig,
        input_ids: Tensor,
        position_ids: Tensor,
        image_lengths: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> "BatchLayout":
        """The layout that `ArlowModel.forward` would find from the same arguments.

        Args:
            position_ids: (B, T); where they restart inside a row a new document begins. Padding is a document.
            image_lengths: (M,) int64, encoder tokens that the decoder reads of each image; None: no image comes.
            image_index: (N,) int64, where texts share images: which of the M images each `<image>` stands for.

        Raises:
            ValueError: another number of images than of `<image>` tokens.
        """
        documents = document_ids(position_ids.expand(input_ids.shape))
        text = documents, has_packed_rows(documents), TextRuns.of_documents(documents)
        if image_lengths is None:
            return cls(*text, segments=None)
        is_image = input_ids == config.image_token_id
        segments = build_segments(config, is_image, documents, image_lengths, image_index)
        if isinstance(segments, SegmentTable):
            segments.ready()
        return cls(*text, segments=segments, encoder_tokens=int(image_lengths.sum()))
