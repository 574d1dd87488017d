"""The manifest of a folder of tokens, `manifest.json`. It is written last, so a folder that has one is complete."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from arlow_vl.data.same_files import has_other_bytes
from arlow_vl.data.text import LineTally
from arlow_vl.errors import DataError
from vision.whole_files import write_whole

FORMAT = 1  # another number when the files' meaning changes
NAME = "manifest.json"


@dataclass(frozen=True)
class SourceFile:
    """A file that was tokenised."""

    path: str
    size: int
    mtime_ns: int
    sha256: str | None = None
    """None: the file was not read to its end."""
    ctime_ns: int = 0
    """0: an earlier version did not note it."""

    @classmethod
    def at(cls, path: Path) -> "SourceFile":
        found = path.stat()
        return cls(str(path.resolve()), found.st_size, found.st_mtime_ns, ctime_ns=found.st_ctime_ns)


@dataclass(frozen=True)
class Shard:
    """A part of the tokens, in two files.

    `NAME.bin` holds the tokens, each document as bos, ids, eos. `NAME.idx` holds two rows of uint64: the first token of
    each document, and its first byte in the text as UTF-8; each row ends with the total.
    """

    name: str
    documents: int
    tokens: int
    utf8_bytes: int
    sha256: str
    """Hash of the tokens."""


@dataclass(frozen=True)
class Manifest:
    """A folder of tokens; see `Shard` for the files beside it."""

    format: int
    tokenizer: str
    """`tokenizer_hash` of the tokenizer that made the ids."""
    bos_token_id: int
    eos_token_id: int
    dtype: str
    """Type of the tokens: uint16 or uint32, little-endian."""
    max_tokens: int | None
    """Limit at which reading was to stop, after a whole document; None: no limit."""
    read_to_end: bool
    """False: `max_tokens` were read before the text ended."""
    unit: str
    """Unit of `used` and `skipped`: lines, rows or documents."""
    used: int
    """Lines, rows or documents that became documents."""
    skipped: dict[str, int]
    examples: dict[str, str]
    sources: list[SourceFile]
    shards: list[Shard]

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def utf8_bytes(self) -> int:
        return sum(shard.utf8_bytes for shard in self.shards)

    @property
    def tally(self) -> LineTally:
        return LineTally(self.used, Counter(self.skipped), self.examples, self.unit)

    @property
    def fingerprint(self) -> str:
        """Hash that depends on every token, but not on the place of the text."""
        shards = [[shard.documents, shard.tokens, shard.sha256] for shard in self.shards]
        return hashlib.sha256(json.dumps([FORMAT, self.bos_token_id, self.dtype, shards]).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        totals = {name: getattr(self, name) for name in ("documents", "utf8_bytes", "tokens", "fingerprint")}
        write_whole(folder / NAME, json.dumps({**totals, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads the manifest of a folder. Raises DataError if it is damaged or of another format."""
        advice = f"remove {folder} and tokenise the text again"
        try:
            values: dict[str, Any] = json.loads((folder / NAME).read_text())
            values = {name: values[name] for name in cls.__dataclass_fields__}
            values["sources"] = [SourceFile(**source) for source in values["sources"]]
            values["shards"] = [Shard(**shard) for shard in values["shards"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{folder / NAME} is damaged; {advice}") from None
        if values["format"] != FORMAT:
            raise DataError(f"{folder / NAME} has format {values['format']}, not {FORMAT}; {advice}")
        return cls(**values)


def tokenizer_hash(tokenizer: Any) -> str:
    """Returns a hash of everything in a tokenizer that decides the ids of plain text."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    decisive = [spec[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def with_current_times(sources: Iterable[SourceFile]) -> tuple[list[SourceFile], list[str]]:
    """Returns the files with their present times, and the paths of those whose bytes have changed.

    Missing files count as unchanged. Where only times differ, SHA-256 decides (see `same_files`).
    """
    current, changed = [], []
    for source in sources:
        path = Path(source.path)
        if path.is_file():
            now = path.stat()
            if has_other_bytes(path, now, source):
                changed.append(source.path)
            source = replace(source, mtime_ns=now.st_mtime_ns, ctime_ns=now.st_ctime_ns)
        current.append(source)
    return current, changed


def merged(tallies: list[tuple[Path, LineTally]]) -> LineTally:
    """Returns one tally of several files, whose examples name them."""
    several = len({path for path, _ in tallies}) > 1
    units = {tally.unit.partition(" ")[0] for _, tally in tallies}
    total = LineTally(unit=units.pop() if len(units) == 1 else "document")
    for path, tally in tallies:
        total.used += tally.used
        total.skipped.update(tally.skipped)
        for reason, example in tally.examples.items():
            total.examples.setdefault(reason, f"{path.name}: {example}" if several else example)
    return total
