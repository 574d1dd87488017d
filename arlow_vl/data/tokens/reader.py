"""Tokenised text, memory-mapped: documents by number, and the stream of all documents."""

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt

from arlow_vl.data.tokens.manifest import NAME, Manifest
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of


class TokenizedText:
    """A folder of tokens. Opening it reads no tokens: a shard is mapped when it is first needed.

    Raises:
        DataError: the manifest or a shard is missing, damaged or cut.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / NAME).is_file():
            raise DataError(f"{folder} holds no {NAME}; `arlow data tokenize` makes such a folder")
        self.folder = folder
        self.manifest = Manifest.read(folder)
        self.fingerprint = self.manifest.fingerprint
        self._dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        shards = self.manifest.shards
        self._first_document = np.array([0, *accumulate(shard.documents for shard in shards)])
        self._first_token = np.array([0, *accumulate(shard.tokens for shard in shards)])
        self._first_byte = np.array([0, *accumulate(shard.utf8_bytes for shard in shards)])
        self._maps: dict[str, Any] = {}
        for shard in shards:
            self._check_size(f"{shard.name}.bin", shard.tokens * self._dtype.itemsize)
            self._check_size(f"{shard.name}.idx", 16 * (shard.documents + 1))

    def __len__(self) -> int:
        return int(self._first_document[-1])

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the stream, with every document's bos and eos."""
        return int(self._first_token[-1])

    def span(self, index: int) -> tuple[int, int]:
        """Returns the start and end of a document, with its bos and eos, in the stream."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index:,} of {len(self):,}")
        shard = int(np.searchsorted(self._first_document, index, side="right")) - 1
        place = index - int(self._first_document[shard])
        start, end = self._index(shard)[0, place : place + 2]
        first = int(self._first_token[shard])
        return first + int(start), first + int(end)

    def length(self, index: int) -> int:
        """Returns the number of a document's tokens, without bos and eos."""
        start, end = self.span(index)
        return end - start - 2

    def ids(self, index: int) -> UInt[np.ndarray, " text"]:
        """Returns a document's tokens, without bos and eos."""
        start, end = self.span(index)
        return self.stream(start + 1, end - 1)

    def lengths(self) -> Integer[np.ndarray, " documents"]:
        """Returns the number of tokens of each document, with bos and eos."""
        starts = (self._index(shard)[0] for shard in range(len(self.manifest.shards)))
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(some).astype(np.int64) for some in starts)])

    def stream(self, start: int, end: int) -> UInt[np.ndarray, " text"]:
        """Returns tokens `start` up to `end` of all documents one after another, each as bos, ids, eos."""
        pieces = []
        shard = int(np.searchsorted(self._first_token, start, side="right")) - 1
        while start < end:
            first, last = self._first_token[shard : shard + 2]
            piece = self._tokens(shard)[start - first : min(end, last) - first]
            pieces.append(piece)
            start += len(piece)
            shard += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, self._dtype), *pieces])

    def until(self, max_tokens: int) -> tuple[int, int, int]:
        """Returns documents, tokens and UTF-8 bytes of the shortest run of first documents with `max_tokens` tokens.

        Where all documents together have fewer, it returns those of all.
        """
        shard = int(np.searchsorted(self._first_token, max_tokens)) - 1
        if shard >= len(self.manifest.shards):
            return len(self), self.num_tokens, self.manifest.utf8_bytes
        starts, utf8_starts = self._index(shard)
        documents = int(np.searchsorted(starts, max_tokens - self._first_token[shard]))
        firsts = (self._first_document[shard], self._first_token[shard], self._first_byte[shard])
        documents_tokens_bytes = (documents, int(starts[documents]), int(utf8_starts[documents]))
        first_document, first_token, first_byte = map(int, firsts)
        held, tokens, utf8_bytes = documents_tokens_bytes
        return first_document + held, first_token + tokens, first_byte + utf8_bytes

    def _tokens(self, shard: int) -> np.ndarray:
        name = f"{self.manifest.shards[shard].name}.bin"
        return self._map(name, lambda path: np.memmap(path, self._dtype, "r"))

    def _index(self, shard: int) -> np.ndarray:
        name = f"{self.manifest.shards[shard].name}.idx"
        return self._map(name, lambda path: np.memmap(path, "<u8", "r").reshape(2, -1))

    def _map(self, name: str, open_map: Callable[[Path], np.ndarray]) -> np.ndarray:
        if name not in self._maps:
            self._maps[name] = open_map(self.folder / name)
        return self._maps[name]

    def _check_size(self, name: str, expected: int) -> None:
        path = self.folder / name
        if not path.is_file():
            raise DataError(f"{self.folder} lacks {name}, which its {NAME} names; copy the whole folder")
        if path.stat().st_size != expected:
            raise DataError(f"{path} has {number_of(path.stat().st_size, 'byte')}, not {expected:,}; copy it again")
