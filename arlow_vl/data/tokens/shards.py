"""Writes one part of the text as shards: streamed, each complete or absent, and not written again after a kill."""

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from arlow_vl.data.text import LineTally
from arlow_vl.data.text_files import PART_BYTES, TextPart
from arlow_vl.data.text_readers import DocumentReader
from arlow_vl.data.tokens.encoding import Encoder
from arlow_vl.data.tokens.manifest import Shard, SourceFile
from arlow_vl.data.tokens.plan import refuse_change
from vision.whole_files import put_in_place, write_whole

CHARACTERS_AT_ONCE = 2**18
DOCUMENTS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class TokenLimits:
    """Sizes at which a part of the text, a shard and the reading end."""

    part_bytes: int = PART_BYTES
    """About so many bytes of a file are a part, which one process tokenises."""
    shard_tokens: int = 2**26
    """A shard ends with the document that brings it to this many tokens."""
    max_tokens: int | None = None
    """A part, and the whole text, end with the document that brings them to this many tokens; None: at their end."""


DEFAULT_LIMITS = TokenLimits()


@dataclass(frozen=True, kw_only=True)
class ShardFormat:
    """Format of the tokens in shards."""

    bos_token_id: int
    eos_token_id: int
    dtype: str
    """ "uint16" or "uint32"."""
    limits: TokenLimits


@dataclass(frozen=True)
class PartFacts:
    """The shards of a part and the tally of its documents."""

    tally: LineTally
    shards: list[Shard]
    read_to_end: bool
    sha256: str | None
    """Hash of the whole file, which the first part of a file has if it was read to the end; else None."""
    reason: str | None
    """Reason why tiktoken was not used; None: it was."""

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    def write(self, path: Path) -> None:
        tally = {name: getattr(self.tally, name) for name in ("used", "skipped", "examples", "unit")}
        values = {"read_to_end": self.read_to_end, "sha256": self.sha256, "reason": self.reason}
        shards = [asdict(shard) for shard in self.shards]
        write_whole(path, json.dumps({"tally": tally, "shards": shards, **values}))

    @classmethod
    def read(cls, path: Path) -> "PartFacts | None":
        """Returns the facts of a part; None: it is not finished."""
        if not path.is_file():
            return None
        values: dict[str, Any] = json.loads(path.read_text())
        tally = values["tally"]
        values["tally"] = LineTally(tally["used"], Counter(tally["skipped"]), tally["examples"], tally["unit"])
        values["shards"] = [Shard(**shard) for shard in values["shards"]]
        return cls(**values)


class ShardWriter:
    """Writes a shard under a temporary name until `finish` is called."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.partial = folder / f".{name}.bin.partial"
        self.file = open(self.partial, "wb")  # noqa: SIM115  # `finish` closes it
        self.starts, self.utf8_starts = array("Q", [0]), array("Q", [0])
        self.digest = hashlib.sha256()
        self._waiting: list[int] = []

    @property
    def tokens(self) -> int:
        return self.starts[-1]

    def add(self, document: list[int], text: str) -> None:
        self._waiting += document
        self.starts.append(self.starts[-1] + len(document))
        self.utf8_starts.append(self.utf8_starts[-1] + (len(text) if text.isascii() else len(text.encode())))

    def flush(self) -> None:
        raw = np.array(self._waiting, self.dtype).tobytes()
        self.file.write(raw)
        self.digest.update(raw)
        self._waiting = []

    def finish(self) -> Shard:
        """Renames the shard to its final name, and writes its facts last, which mark it as complete."""
        self.flush()
        self.file.close()
        documents = len(self.starts) - 1
        shard = Shard(self.name, documents, self.tokens, self.utf8_starts[-1], self.digest.hexdigest())
        index = np.array([self.starts, self.utf8_starts], dtype="<u8")
        put_in_place(self.partial, self.folder / f"{self.name}.bin")
        write_whole(self.folder / f"{self.name}.idx", index.tobytes())
        write_whole(self.folder / f"{self.name}.json", json.dumps(asdict(shard)))
        return shard


def write_part(
    part: TextPart,
    source: SourceFile,
    stem: Path,
    encoder: Encoder,
    form: ShardFormat,
    report: Callable[[int], None],
) -> PartFacts:
    """Writes `STEM-000.bin`, ... and at last `STEM.json`; resumes after the shards that are there already.

    `report` is called with the bytes of the part read so far.

    Raises:
        DataError: the part's file is no longer as it was noted in `source`.
    """
    reader = DocumentReader(part)
    shards = list(_whole_shards(stem))
    documents = islice(reader, sum(shard.documents for shard in shards), None)
    limits = form.limits
    enough = limits.max_tokens or math.inf
    tokens = sum(shard.tokens for shard in shards)
    writer: ShardWriter | None = None
    for texts in batches(documents) if tokens < enough else ():
        for text, ids in zip(texts, encoder(texts), strict=True):
            writer = writer or ShardWriter(stem.parent, f"{stem.name}-{len(shards):03d}", form.dtype)
            writer.add([form.bos_token_id, *ids, form.eos_token_id], text)
            tokens += len(ids) + 2
            if writer.tokens >= limits.shard_tokens or tokens >= enough:
                shards.append(writer.finish())
                writer = None
            if tokens >= enough:
                break
        if tokens >= enough:
            break
        if writer is not None:
            writer.flush()
        report(reader.bytes_read)
    if writer is not None:
        shards.append(writer.finish())
    to_end = tokens < enough
    tally = reader.tally if to_end else tally_of_first(part, sum(shard.documents for shard in shards))
    has_hash = part.start == 0 and to_end and (part.end is None or limits.max_tokens is None)
    facts = PartFacts(tally, shards, to_end, reader.sha256() if has_hash else None, encoder.reason)
    refuse_change(source)
    facts.write(facts_path(stem))
    report(part.size)
    return facts


def tally_of_first(part: TextPart, documents: int) -> LineTally:
    """Returns the tally of a part up to so many documents, which are read again.

    The part's own reader is ahead of what is encoded, or has read nothing of what was written before a kill.
    """
    reader = DocumentReader(part)
    for _ in islice(reader, documents):
        pass
    return reader.tally


def facts_path(stem: Path) -> Path:
    """Returns the path of the file that marks a part, or a shard, as complete."""
    return stem.with_name(f"{stem.name}.json")


def _whole_shards(stem: Path) -> Iterator[Shard]:
    for number in count():
        path = facts_path(stem.with_name(f"{stem.name}-{number:03d}"))
        if not path.is_file():
            return
        yield Shard(**json.loads(path.read_text()))


def batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """Yields lists of up to `DOCUMENTS_AT_ONCE` documents, ended early by one that fills `CHARACTERS_AT_ONCE`."""
    some: list[str] = []
    characters = 0
    for document in documents:
        some.append(document)
        characters += len(document)
        if len(some) >= DOCUMENTS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some
