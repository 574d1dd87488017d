"""Documents of tokenised text as items of a mixture, beside samples with images."""

import hashlib

import numpy as np

from arlow_vl.data.prompts import IGNORED
from arlow_vl.data.sample_dataset import EncodedSample, EncodedText, Look
from arlow_vl.data.tokens.reader import TokenizedText


class TokenDocuments:
    """Pieces of at most `max_length` tokens of each document, as `loader.Dataset`.

    A document begins with bos and ends with eos; a longer one continues in the next item. The first token of a piece
    has no label, as nothing precedes it.
    """

    def __init__(self, text: TokenizedText, *, max_length: int) -> None:
        self.text, self.max_length = text, max_length
        pieces = -(-text.lengths() // max_length)
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(pieces)])
        self.fingerprint = hashlib.sha256(f"{text.fingerprint} {max_length}".encode()).hexdigest()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> EncodedSample:
        document, piece = self._place(index)
        first, end = self.text.span(document)
        start = first + piece * self.max_length
        ids = self.text.stream(start, min(start + self.max_length, end)).tolist()
        return EncodedSample([EncodedText(ids, [IGNORED, *ids[1:]])], [])

    def key(self, index: int) -> str:
        """Returns `document 17`, or `document 17, piece 2` for the second piece of a long one."""
        document, piece = self._place(index)
        return f"document {document}" + (f", piece {piece + 1}" if piece else "")

    def length(self, index: int) -> tuple[int, int]:
        """Returns the number of tokens, and 0 images."""
        document, piece = self._place(index)
        return min(self.max_length, self.text.length(document) + 2 - piece * self.max_length), 0

    def look(self, seed: int) -> Look:
        return Look(texts=1, without_room=0, cut=0, is_all=True)

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the document of an item, and the number of the item's piece in it, from 0."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self):,} pieces of documents, there is no piece {index:,}")
        document = int(np.searchsorted(self.starts, index, side="right")) - 1
        return document, index - int(self.starts[document])
