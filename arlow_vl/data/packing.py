"""Documents as rows of tokens without padding: tokenised once, then memory-mapped."""

import hashlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64

from arlow_vl.cores import cores
from arlow_vl.data.bad_share import MAX_BAD_FRACTION
from arlow_vl.data.prompts import IGNORED, document_ends
from arlow_vl.data.remote import is_address, is_file_address, path_of_file_address
from arlow_vl.data.sources import Batch
from arlow_vl.data.text_files import PART_BYTES, shown_source
from arlow_vl.data.tokens.manifest import NAME, tokenizer_hash, with_current_times
from arlow_vl.data.tokens.reader import TokenizedText
from arlow_vl.data.tokens.shards import TokenLimits
from arlow_vl.data.tokens.write import tokenize_text
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, print_line
from arlow_vl.progress import ProgressLine

COUNTED_AT_ONCE = 2**24
MEGABYTE = 10**6


@dataclass(frozen=True, kw_only=True)
class PackingFacts:
    """Facts about packed documents."""

    documents: int
    """Documents whose tokens are used."""
    utf8_bytes: int
    """UTF-8 bytes of these documents, for bits per byte."""
    tokens: int
    """Tokens of these documents with bos and eos; those after the last full row are in no row."""
    bos_token_id: int
    """The id that begins a document."""
    read_to_end: bool
    """True: this is all of the text; False: `max_tokens` were reached first."""


class PackedRows:
    """Rows of `row_length` tokens, int64, of the stream of documents, read from disk when they are indexed.

    Raises:
        DataError: there is not one full row.
    """

    def __init__(self, text: TokenizedText, row_length: int, max_tokens: int | None = None) -> None:
        self.text = text
        self.row_length = row_length
        manifest, limit = text.manifest, max_tokens or text.num_tokens + 1
        documents, tokens, utf8_bytes = text.until(limit)
        self.facts = PackingFacts(
            documents=documents,
            utf8_bytes=utf8_bytes,
            tokens=tokens,
            bos_token_id=manifest.bos_token_id,
            read_to_end=manifest.read_to_end and tokens < limit,
        )
        self.fingerprint = hashlib.sha256(json.dumps([text.fingerprint, row_length, documents]).encode()).hexdigest()

    def __len__(self) -> int:
        return self.facts.tokens // self.row_length

    def __getitem__(self, index: int) -> Int64[np.ndarray, " text"]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index:,} of {len(self):,}")
        return self.text.stream(index * self.row_length, (index + 1) * self.row_length).astype(np.int64)

    def key(self, index: int) -> str:
        return f"{index:06d}"

    def summary(self) -> str:
        """`60 documents, 1,234 tokens, 77 rows of 16 (2 tokens over the last full row)`."""
        facts, over = self.facts, self.facts.tokens % self.row_length
        cut = "" if facts.read_to_end else "; the rest of the text is over max_tokens"
        rows = (
            f"{number_of(len(self), 'row')} of {self.row_length:,} ({number_of(over, 'token')} over the last full row)"
        )
        return f"{number_of(facts.documents, 'document')}, {number_of(facts.tokens, 'token')}, {rows}{cut}"

    @property
    def tokens_per_byte(self) -> float:
        """Predicted tokens (all but each document's bos) for each byte of text: nats per token -> nats per byte."""
        return (self.facts.tokens - self.facts.documents) / self.facts.utf8_bytes

    def token_counts(self, vocab_size: int) -> Int64[np.ndarray, " vocab"]:
        """Counts how often each id is to be predicted; bos never is."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, self.facts.tokens, COUNTED_AT_ONCE):
            some = self.text.stream(start, min(start + COUNTED_AT_ONCE, self.facts.tokens))
            counts += np.bincount(some, minlength=vocab_size)
        counts[self.facts.bos_token_id] -= self.facts.documents
        return counts


def unigram_entropy(counts: Int64[np.ndarray, " vocab"]) -> float:
    """Returns the nats per token of the best model that looks at no context."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def bits_per_byte(nats_per_token: float, tokens_per_byte: float) -> float:
    """Converts a loss to bits per byte, which do not depend on the tokenizer."""
    return nats_per_token * tokens_per_byte / math.log(2)


def pack_documents(
    texts: str | Path,
    tokenizer: Any,
    row_length: int,
    cache_folder: Path,
    *,
    max_tokens: int | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> PackedRows:
    """Returns rows of a text's documents, each as bos, plain text, eos.

    `texts` is a folder that `arlow data tokenize` made, or text in any of its formats, which is tokenised once, into
    `cache_folder`. Takes whole documents until there are `max_tokens` tokens. Reports what was skipped, also where
    the tokens were made earlier.

    Raises:
        DataError: there is no such text, too much of it is unusable, another tokenizer made the tokens, or they do not
            fill one row.
    """
    text = tokenised(texts, tokenizer, cache_folder, max_tokens=max_tokens, max_bad_fraction=max_bad_fraction)
    rows = PackedRows(text, row_length, max_tokens)
    if not len(rows):
        raise DataError(
            f"{shown_source(texts)} has {number_of(rows.facts.tokens, 'token')}, fewer than one row of {row_length}; "
            "add text or lower row_length"
        )
    return rows


def tokenised(
    texts: str | Path,
    tokenizer: Any,
    cache_folder: Path,
    *,
    max_tokens: int | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> TokenizedText:
    """Returns a text as tokens, made if they are not there; arguments and errors are those of `pack_documents`."""
    if is_file_address(texts):
        texts = path_of_file_address(str(texts))
    folder = Path(texts)
    if is_address(texts):
        folder = _cached(texts, tokenizer, cache_folder, max_tokens)
    # Text at an address stays what it was when it was tokenised, so that a resumed run asks no server.
    if not (folder / NAME).is_file():
        return _tokenised_once(texts, tokenizer, cache_folder, max_tokens, max_bad_fraction)
    text = _tokenised_before(folder, tokenizer, max_tokens)
    text.manifest.tally.report(shown_source(texts), max_bad_fraction)
    return text


def _tokenised_before(folder: Path, tokenizer: Any, max_tokens: int | None) -> TokenizedText:
    text = TokenizedText(folder)
    manifest = text.manifest
    made_by = (manifest.tokenizer, manifest.bos_token_id, manifest.eos_token_id)
    if made_by != (tokenizer_hash(tokenizer), *document_ends(tokenizer)):
        raise DataError(f"{folder} was made with another tokenizer; tokenise the text again with the one of this run")
    _, changed = with_current_times(manifest.sources)
    if changed:
        print_line(f"{folder} holds {changed[0]} as it was; the text has changed since", file=sys.stderr)
    return text


def _cached(texts: str | Path, tokenizer: Any, cache_folder: Path, max_tokens: int | None) -> Path:
    """Returns the folder for the tokens of a text that a recipe names."""
    where = str(texts) if is_address(texts) else str(Path(texts).resolve())
    key = json.dumps([where, tokenizer_hash(tokenizer), max_tokens])
    return cache_folder / hashlib.sha256(key.encode()).hexdigest()[:16]


def _tokenised_once(
    texts: str | Path, tokenizer: Any, cache_folder: Path, max_tokens: int | None, max_bad_fraction: float
) -> TokenizedText:
    return tokenize_text(
        [texts],
        tokenizer,
        _cached(texts, tokenizer, cache_folder, max_tokens),
        limits=TokenLimits(max_tokens=max_tokens),
        workers=cores(),
        max_bad_fraction=max_bad_fraction,
        progress=_Progress(f"tokenising {Path(shown_source(texts)).name}"),
        replace=True,
    )


class _Progress:
    """Shows a line for text that takes a while."""

    def __init__(self, title: str) -> None:
        self.line = ProgressLine(title, "MB")

    def __call__(self, done: int, total: int) -> None:
        if total > PART_BYTES:
            self.line(done // MEGABYTE, total // MEGABYTE)


def collate_rows(rows: list[Any], bos_token_id: int, eos_token_id: int | None = None) -> Batch:
    """(B, T) ids; positions that start again with each document and row; labels that skip each document's bos.

    `eos_token_id` matters where it is bos, too (see `first_tokens`).
    """
    input_ids = np.stack(rows)
    index = np.arange(input_ids.shape[1])
    is_first = first_tokens(input_ids, bos_token_id, eos_token_id)
    begins = np.where(is_first, index, 0)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(index - np.maximum.accumulate(begins, axis=1)),
        "labels": torch.from_numpy(np.where(is_first, IGNORED, input_ids)),
    }


def first_tokens(
    input_ids: Int64[np.ndarray, "batch text"], bos_token_id: int, eos_token_id: int | None
) -> Bool[np.ndarray, "batch text"]:
    """Marks the tokens that begin a document: every bos.

    Where one token E is both bos and eos, as GPT-2's is, a document begins with the second of a pair, the first being
    the end of the document before; and with the first token of a row, unless it is the first of a pair:

        row     a b E E c E E d        E c d E        E E c
        begins        ^     ^          ^                ^
    """
    is_bos = input_ids == bos_token_id
    if bos_token_id != eos_token_id:
        return is_bos
    is_first = np.zeros_like(is_bos)
    is_first[:, 1:] = is_bos[:, 1:] & is_bos[:, :-1]
    is_first[:, 0] = is_bos[:, 0] & ~is_first[:, 1:2].any(axis=1)
    return is_first
