"""Files of documents: JSON lines, texts and columns of strings, alone, in folders, by globs, at addresses.

A file at an address is fetched whole into the cache (see `data.remote`) and read there.
"""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arlow_vl.data.file_names import files_under, globbed
from arlow_vl.data.remote import (
    RANGE,
    hold,
    is_address,
    is_file_address,
    listed,
    name_of,
    path_of_file_address,
    ranges,
    without_secrets,
)
from arlow_vl.data.remote_cache import Held
from arlow_vl.data.text import open_regular, refuse_utf16
from arlow_vl.errors import DataError

Format = Literal["lines", "text", "parquet", "arrow", "damaged"]
Compression = Literal["gzip", "zstd"]
PART_BYTES = 2**28
"""Bytes over which a file is read in parts, by several processes where there are."""
COMPRESSED = (".gz", ".zst")
LINES = (".jsonl", ".ndjson")
NAMES = ".jsonl .ndjson .txt (also as .gz or .zst), .json.gz .json.zst, .parquet .arrow"
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", ".gz"),
    (b"\x28\xb5\x2f\xfd", ".zst"),
    (b"PAR1", ".parquet"),
    (b"ARROW1", ".arrow"),
    (b"\xff\xff\xff\xff", ".arrow"),  # Arrow's stream format
)


@dataclass(frozen=True)
class TextPart:
    """A file, or the stretch of a large one that begins in `start` (a byte, of parquet a row group) up to `end`."""

    path: Path
    size: int
    """Bytes, roughly, that are read."""
    start: int = 0
    end: int | None = None
    """None: the file is read to its end."""


class TextFiles(list[Path]):
    """Files in their order. Those that came from addresses stay cached until this is closed or garbage-collected."""

    held: tuple[Held, ...] = ()

    def close(self) -> None:
        """Releases the files in the cache, which may then leave it."""
        for held in self.held:
            held.close()


def text_files(sources: Sequence[str | Path]) -> TextFiles:
    """Returns the files of each source in sorted order. A source is a file, a folder, a saved Hugging Face dataset, a
    glob, a range, or an address as for shards.

    Raises:
        DataError: a source holds no text, cannot be fetched, or a file comes twice.
    """
    files = TextFiles()
    for source in sources:
        if is_file_address(source):
            source = path_of_file_address(str(source))
        if is_address(source):
            addresses = listed(str(source))
            if name_of(addresses[0]) == "manifest.json":
                advice = "copy their folder to this machine, or name the address of the text"
                raise DataError(f"{without_secrets(str(source))}: tokens are mapped, not fetched; {advice}")
            held = tuple(map(hold, addresses))
            files.held += held
            files += [one.path for one in held]
        else:
            files += _files_of(Path(source))
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError(f"{file} comes twice; name each text once")
        seen.add(file.resolve())
    return files


def shown_source(source: str | Path) -> str:
    """Returns the source for messages: an address without its secrets."""
    return without_secrets(source) if isinstance(source, str) and is_address(source) else str(source)


def _files_of(source: Path) -> list[Path]:
    if source.is_dir():
        return _files_in(source)
    if source.exists() or not (glob.has_magic(str(source)) or RANGE.search(str(source))):
        open_regular(source).close()
        return [source]
    files: dict[Path, None] = {}  # a folder may match beside what is in it
    for one in ranges(str(source)):
        found = dict.fromkeys(
            file
            for path in sorted(map(Path, globbed(one)))
            for file in (_files_in(path) if path.is_dir() else [path])
            if file.is_file() and "__MACOSX" not in file.parts
        )
        if not found:
            raise DataError(f"no file matches {one}; name text that is there")
        files |= found
    return list(files)


def _files_in(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(path.name for path in sorted(folder.iterdir()) if path.is_dir())
        raise DataError(f"{folder} holds a dataset of several splits ({splits}); name one, as {folder}/train")
    if (folder / "state.json").is_file():
        return _dataset_files(folder)
    root = Path(os.path.abspath(folder))
    names = sorted(path.relative_to(root) for path in map(Path, files_under(root, hidden=False)) if path.is_file())
    files = [folder / name for name in names if _is_text(name)]
    if not files:
        raise DataError(f"{folder} holds no text; it needs files that end in {NAMES}")
    return files


def _is_text(path: Path) -> bool:
    name = path.name.lower()
    if name.startswith("."):
        return False
    inner, compressed = _without_compression(name)
    lines = (*LINES, ".json") if compressed else LINES  # a plain .json is one value about other files, as a rule
    return inner.endswith((*lines, ".txt")) or name.endswith((".parquet", ".arrow"))


def _dataset_files(folder: Path) -> list[Path]:
    """Returns the files that `save_to_disk` of `datasets` wrote, in its order."""
    try:
        names = [entry["filename"] for entry in json.loads((folder / "state.json").read_text())["_data_files"]]
        files = [folder / Path(name).name for name in names]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{folder}/state.json names no data files; save the dataset again by save_to_disk") from None
    for file in files:
        if not file.is_file():
            raise DataError(f"{folder} lacks {file.name}, which its state.json names; copy the whole folder")
    return files


def format_of(path: Path) -> tuple[Format, Compression | None]:
    """Finds out how to read a file: by its first bytes, and where they say nothing, by its name."""
    with open_regular(path) as file:
        first = file.read(8)
    refuse_utf16(path, first)
    name = path.name.lower()
    known = next((suffix for magic, suffix in MAGIC if first.startswith(magic)), None)
    inner, _ = _without_compression(name)
    content: Format = "text" if inner.endswith(".txt") else "lines"
    match known:
        case ".gz":
            return content, "gzip"
        case ".zst":
            return content, "zstd"
        case ".parquet":
            return "parquet", None
        case ".arrow":
            return "arrow", None
    return ("damaged" if name.endswith((*COMPRESSED, ".parquet", ".arrow")) else content), None


def _without_compression(name: str) -> tuple[str, bool]:
    suffix = next((suffix for suffix in COMPRESSED if name.endswith(suffix)), "")
    return name.removesuffix(suffix), bool(suffix)


def parts_of(path: Path, part_bytes: int = PART_BYTES) -> Iterator[TextPart]:
    """Splits a file into parts of roughly `part_bytes`. Compressed text, plain texts and Arrow files are one part."""
    size = path.stat().st_size
    content, compression = format_of(path)
    if size <= part_bytes or compression is not None or content not in ("lines", "parquet"):
        yield TextPart(path, size)
    elif content == "lines":
        for start in range(0, size, part_bytes):
            yield TextPart(path, min(part_bytes, size - start), start, start + part_bytes)
    else:
        yield from _row_groups(path, size, part_bytes)


def _row_groups(path: Path, size: int, part_bytes: int) -> Iterator[TextPart]:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        yield TextPart(path, size)  # whose reader names the fault
        return
    start, held, average = 0, 0, size // max(1, metadata.num_row_groups)
    for group in range(metadata.num_row_groups):
        held += average
        if held >= part_bytes or group == metadata.num_row_groups - 1:
            yield TextPart(path, held, start, group + 1)
            start, held = group + 1, 0
