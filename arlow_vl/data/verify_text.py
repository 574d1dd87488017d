"""Verifying of text and of folders of tokenised text, which are read as training reads them."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.conversations import CONVERSATION_FIELDS, IMAGE_FIELDS
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.processes import in_processes
from arlow_vl.data.remote import is_address, is_file_address
from arlow_vl.data.remote_cache import naming_addresses
from arlow_vl.data.shard_faults import ShardFault, faults_at_addresses
from arlow_vl.data.shard_samples import BadSample
from arlow_vl.data.text import MAX_LINE_BYTES, LineTally, Unusable, open_regular, parse_object
from arlow_vl.data.text_files import COMPRESSED, LINES, TextFiles, TextPart, text_files
from arlow_vl.data.text_readers import FILE_FAULTS, DocumentReader
from arlow_vl.data.tokens.manifest import NAME, Manifest
from arlow_vl.data.tokens.reader import TokenizedText
from arlow_vl.data.verify import Verified
from arlow_vl.errors import DataError
from vision.whole_files import sha256_of_file

TEXT = "text"
"""Name of the format of text."""
Progress = Callable[[int, int, int], None]
"""Called with the documents read so far, the files read, and the number of files."""


class _Task(NamedTuple):
    """A file of text, or a shard of tokens by its number."""

    source: str
    path: Path
    shard: int | None = None
    name: str = ""
    """Name of the file, with folders where other files have the same one."""


@dataclass
class _NamedTally(LineTally):
    """A tally that names everything that is skipped."""

    name: str = ""
    bad: list[BadSample] = field(default_factory=list)

    def skip(self, number: int, fault: Unusable, count: int = 1) -> None:
        super().skip(number, fault, count)
        self.bad.append(BadSample(f"{self.name}: {self.unit} {number:,}", str(fault), count=count, detail=fault.detail))


def is_text(path: str | Path, format: str | None = None) -> bool:
    """Returns True if a source is text alone: by `format` or, without one, by its own name or content."""
    path = Path(path)
    if format is not None or path.is_dir():
        return format == TEXT or (format is None and _is_tokenised(path))
    name = path.name.lower()
    if name.endswith((".txt", *COMPRESSED)):
        return True
    return name.endswith(LINES) and path.is_file() and _begins_with_text(path)


def _is_tokenised(folder: Path) -> bool:
    try:
        return "tokenizer" in json.loads((folder / NAME).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _begins_with_text(path: Path) -> bool:
    """Returns True if the first record is a text without any place for an image."""
    with open_regular(path) as file:
        line = file.readline(MAX_LINE_BYTES)
    try:
        record = parse_object(line)
    except Unusable:
        return False
    others = {*IMAGE_FIELDS, *CONVERSATION_FIELDS, "question"}
    return isinstance(record.get("text"), str) and not others & record.keys()


def verify_text(
    sources: Sequence[str | Path],
    *,
    workers: int = 1,
    progress: Progress = lambda documents, ready, files: None,
) -> Verified:
    """Reads every document; of tokenised text, compares the SHA-256 of shards with the manifest.

    Raises:
        DataError: a source is not there or holds no text, or a file comes twice.
    """
    found = {str(source): Tally("document") for source in sources}
    with contextlib.closing(TextFiles()) as files:  # which stay in the cache until all are read
        tasks = [task for source, tally in found.items() for task in _tasks(source, tally, files)]
        names = names_of(task.path for task in tasks)
        tasks = [task._replace(name=names[task.path]) for task in tasks]
        parts, documents = {}, 0
        with naming_addresses(files.held):
            for task, part in in_processes(_verify, tasks, max(1, min(workers, len(tasks)))):
                parts[task] = part
                documents += part.samples
                progress(documents, len(parts), len(tasks))
        for task in tasks:
            found[task.source].add(parts[task])
        for tally in found.values():
            tally.faults = faults_at_addresses(tally.faults, files.held)
        unusable = {task.path for task in tasks if not parts[task].samples}
        for held in files.held:
            held.is_damaged |= held.path in unusable
    return Verified(found)


def _tasks(source: str, tally: Tally, held: TextFiles) -> Iterator[_Task]:
    if is_address(source) or is_file_address(source) or not _is_tokenised(Path(source)):
        files = text_files([source])
        held.held += files.held
        yield from (_Task(source, path) for path in files)
        return
    try:
        shards = len(TokenizedText(Path(source)).manifest.shards)
    except DataError as error:
        tally.faults.append(ShardFault(source, str(error)))
        return
    yield from (_Task(source, Path(source), number) for number in range(shards))


def _verify(task: _Task) -> Tally:
    if task.shard is not None:
        return _verify_shard(task.path, task.shard)
    reader = DocumentReader(TextPart(task.path, task.path.stat().st_size))
    tally = _NamedTally(unit=reader.tally.unit, name=task.name)
    reader.tally = tally
    documents = sum(1 for _ in reader)
    faults = [ShardFault(str(task.path), f"{bad.reason}{bad.detail}") for bad in tally.bad if bad.reason in FILE_FAULTS]
    return Tally(samples=documents, bad=tally.bad, faults=faults)


def _verify_shard(folder: Path, number: int) -> Tally:
    manifest = Manifest.read(folder)
    shard = manifest.shards[number]
    path = folder / f"{shard.name}.bin"
    tokens = np.memmap(path, np.dtype(manifest.dtype).newbyteorder("<"), "r") if shard.tokens else np.zeros(0)
    starts, utf8_starts = np.fromfile(path.with_suffix(".idx"), "<u8").reshape(2, -1)
    reasons = []
    if sha256_of_file(path) != shard.sha256:
        reasons.append(f"SHA-256 differs from {NAME}")
    if not _bounds(starts, shard.tokens, least=2) or not _bounds(utf8_starts, shard.utf8_bytes, least=0):
        reasons.append(f"{path.stem}.idx is damaged")
    else:
        begins, ends = tokens[starts[:-1]], tokens[starts[1:] - 1]
        if (begins != manifest.bos_token_id).any() or (ends != manifest.eos_token_id).any():
            reasons.append("documents do not begin with bos and end with eos where its .idx says")
    if reasons:
        return Tally(faults=[ShardFault(str(path), "; ".join(reasons), shard.documents)])
    return Tally(samples=shard.documents)


def _bounds(starts: np.ndarray, end: int, *, least: int) -> bool:
    """Returns True if the starts go from 0 to the end in steps of at least `least`."""
    steps = np.diff(starts.astype(np.int64))
    return bool(starts[0] == 0 and starts[-1] == end and (steps >= least).all())
