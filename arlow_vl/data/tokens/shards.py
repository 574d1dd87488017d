"""One part of the text becomes shards: streamed, whole or absent, and after a kill not made a second time."""

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
    """How tokens are written."""

    bos_token_id: int
    eos_token_id: int
    dtype: str
    """ "uint16" or "uint32"."""
    limits: TokenLimits


@dataclass(frozen=True)
class PartFacts:
    """What became of a part."""

    tally: LineTally
    shards: list[Shard]
    read_to_end: bool
    sha256: str | None
    """Of the whole file, from its first part where that was read to the end."""
    reason: str | None
    """Why tiktoken was not used; None: it was."""

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
        """None: the part is not finished."""
        if not path.is_file():
            return None
        values: dict[str, Any] = json.loads(path.read_text())
        tally = values["tally"]
        values["tally"] = LineTally(tally["used"], Counter(tally["skipped"]), tally["examples"], tally["unit"])
        values["shards"] = [Shard(**shard) for shard in values["shards"]]
        return cls(**values)


class ShardWriter:
    """Writes a shard under another name, which `finish` takes away."""

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
        """Gives the shard its name; its facts come last, and say that it is whole."""
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
    """Writes `STEM-000.bin`, ... and at last `STEM.json`; goes on behind shards that are there already.

    `report` is called with the bytes of the part that are read.

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
    """Of the part up to so many documents: they are read again, as a reader is ahead of what is encoded, or after a
    kill has read nothing."""
    reader = DocumentReader(part)
    for _ in islice(reader, documents):
        pass
    return reader.tally


def facts_path(stem: Path) -> Path:
    """The file that says that a part, or a shard, is whole."""
    return stem.with_name(f"{stem.name}.json")


def _whole_shards(stem: Path) -> Iterator[Shard]:
    for number in count():
        path = facts_path(stem.with_name(f"{stem.name}-{number:03d}"))
        if not path.is_file():
            return
        yield Shard(**json.loads(path.read_text()))


def batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """Documents until there are many, or many characters in them."""
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
