"""Documents as rows of tokens without padding: tokenised once, kept in a memory-mapped file beside its facts."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from arlow_vl.data.bad_share import MAX_BAD_FRACTION
from arlow_vl.data.loader import Batch
from arlow_vl.data.prompts import IGNORED
from arlow_vl.data.text import LineTally, read_jsonl
from arlow_vl.errors import DataError
from vision.whole_files import write_whole

DOCUMENTS_AT_ONCE = 512
FORMAT = 2  # part of the cache key; another number when the file's meaning changes


@dataclass(frozen=True, kw_only=True)
class PackingFacts:
    """What was packed."""

    documents: int
    """Documents read."""
    utf8_bytes: int
    """Their length, for bits per byte."""
    tokens: int
    """Their tokens with bos and eos; what is over the last full row is not in a row."""
    bos_token_id: int
    """The id that begins a document."""
    read_to_end: bool
    """Whether there was no text left; False: `max_tokens` were read before."""
    lines: int
    """Lines read that hold a document."""
    skipped: dict[str, int]
    """Unusable lines by reason."""
    examples: dict[str, str]
    """For each reason a line that it hit."""

    @property
    def tally(self) -> LineTally:
        return LineTally(self.lines, Counter(self.skipped), self.examples)


class PackedRows:
    """Rows of `row_length` tokens, int64, read from disk when asked for."""

    def __init__(self, path: Path, row_length: int, facts: PackingFacts) -> None:
        self.tokens = np.load(path, mmap_mode="r")
        self.row_length = row_length
        self.facts = facts
        self.fingerprint = path.stem

    def __len__(self) -> int:
        return len(self.tokens) // self.row_length

    def __getitem__(self, index: int) -> Int64[np.ndarray, " text"]:
        return self.tokens[index * self.row_length : (index + 1) * self.row_length].astype(np.int64)

    def key(self, index: int) -> str:
        return f"{index:06d}"

    def summary(self) -> str:
        """`60 documents, 1,234 tokens, 77 rows of 16 (2 tokens over the last full row)`."""
        facts, over = self.facts, len(self.tokens) % self.row_length
        cut = "" if facts.read_to_end else "; the rest of the file is over max_tokens"
        rows = f"{len(self):,} rows of {self.row_length:,} ({over:,} tokens over the last full row)"
        return f"{facts.documents:,} documents, {facts.tokens:,} tokens, {rows}{cut}"

    @property
    def tokens_per_byte(self) -> float:
        """Predicted tokens (all but each document's bos) for each byte of text: nats per token -> nats per byte."""
        return (self.facts.tokens - self.facts.documents) / self.facts.utf8_bytes

    def token_counts(self, vocab_size: int) -> Int64[np.ndarray, " vocab"]:
        """How often each id is to be predicted; bos never is."""
        counts = np.bincount(self.tokens, minlength=vocab_size).astype(np.int64)
        counts[self.facts.bos_token_id] = 0
        return counts


def unigram_entropy(counts: Int64[np.ndarray, " vocab"]) -> float:
    """Nats per token of the best model that looks at no context."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def bits_per_byte(nats_per_token: float, tokens_per_byte: float) -> float:
    """A loss that does not depend on the tokenizer."""
    return nats_per_token * tokens_per_byte / math.log(2)


def pack_documents(
    texts: Path,
    tokenizer,
    row_length: int,
    cache_folder: Path,
    *,
    max_tokens: int | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> PackedRows:
    """Rows of a jsonl file's documents, each as bos, plain text, eos; tokenised unless `cache_folder` has these rows.

    Reads whole documents until there are `max_tokens` tokens. Says which lines it skips, also if they were skipped
    when the rows were made.

    Raises:
        DataError: there is no such file, too many of its lines are unusable, or its documents do not fill one row.
    """
    if not texts.is_file():
        raise DataError(f"no such file: {texts}; `arlow data fetch` gets the real data")
    key = _cache_key(texts, tokenizer, row_length, max_tokens)
    path, facts_path = cache_folder / f"{key}.npy", cache_folder / f"{key}.json"
    if not facts_path.is_file():
        tokens, facts = _tokenise(texts, tokenizer, max_tokens)
        if len(tokens) < row_length:
            facts.tally.report(texts, max_bad_fraction)
            raise DataError(
                f"{texts} has {len(tokens)} tokens, fewer than one row of {row_length}; add text or lower row_length"
            )
        write_whole(path, lambda file: np.save(file, tokens))
        # The last: its presence says that the rows are whole.
        write_whole(facts_path, json.dumps(asdict(facts)))
    rows = PackedRows(path, row_length, PackingFacts(**json.loads(facts_path.read_text())))
    rows.facts.tally.report(texts, max_bad_fraction)
    return rows


def _cache_key(texts: Path, tokenizer, row_length: int, max_tokens: int | None) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, row_length, max_tokens]).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    with open(texts, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _tokenise(texts: Path, tokenizer, max_tokens: int | None) -> tuple[np.ndarray, PackingFacts]:
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    enough = math.inf if max_tokens is None else max_tokens
    lines = LineTally()
    pieces, documents, utf8_bytes, tokens = [], 0, 0, 0
    for some in _batches(read_jsonl(texts, lines)):
        for text, ids in zip(some, _plain_ids(tokenizer, some), strict=True):
            if tokens >= enough:
                break
            pieces.append(np.array([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], dtype=dtype))
            documents, utf8_bytes, tokens = documents + 1, utf8_bytes + len(text.encode()), tokens + len(ids) + 2
        if tokens >= enough:
            break
    facts = PackingFacts(
        documents=documents,
        utf8_bytes=utf8_bytes,
        tokens=tokens,
        bos_token_id=tokenizer.bos_token_id,
        read_to_end=tokens < enough,
        lines=lines.used,
        skipped=dict(lines.skipped),
        examples=lines.examples,
    )
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype), facts


def _batches(texts: Iterator[str]) -> Iterable[list[str]]:
    return iter(lambda: list(islice(texts, DOCUMENTS_AT_ONCE)), [])


def _plain_ids(tokenizer, texts: list[str]) -> list[list[int]]:
    """Text that spells a special token stays text."""
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def collate_rows(rows: list[Any], bos_token_id: int) -> Batch:
    """(B, T) ids; positions that start again with each document and row; labels that skip each document's bos."""
    input_ids = np.stack(rows)
    index = np.arange(input_ids.shape[1])
    begins = np.where(input_ids == bos_token_id, index, 0)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(index - np.maximum.accumulate(begins, axis=1)),
        "labels": torch.from_numpy(np.where(input_ids == bos_token_id, IGNORED, input_ids)),
    }
