"""Reader of the documents of a text file, or part of one, of any format; faults are counted, memory is bounded."""

import gzip
import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.text import (
    LineTally,
    Unusable,
    decode_document,
    documents_of_lines,
    keys_of,
    open_regular,
    skip_line,
)
from arlow_vl.data.text_files import Compression, TextFiles, TextPart, format_of

MAX_TEXT_BYTES = 64 * 2**20
"""Limit on a plain text, which is one document."""
MAX_CELL_BYTES = 16 * 2**20
ROWS_AT_ONCE = 32
MOST_EXPANSION = 1000  # gzip cannot exceed it by much, zstd by far
FREE_EXPANSION = 64 * 2**20
FILE_FAULTS = ("truncated_file", "damaged_file", "expands_too_far")
"""Reasons that end a file early."""
CHUNK = 2**20
STEP = 2**16


class DocumentReader:
    """Iterates over the documents of a part. `tally` counts what is skipped, `bytes_read` goes up to `part.size`."""

    def __init__(self, part: TextPart) -> None:
        self.part = part
        self.format, self.compression = format_of(part.path)
        unit = {"lines": "line", "text": "document", "parquet": "row", "arrow": "row", "damaged": "line"}[self.format]
        self.tally = LineTally(unit=unit)
        self._hashed: HashedFile | None = None
        self._done = 0

    @property
    def bytes_read(self) -> int:
        return self._done if self._hashed is None else self._hashed.count

    def sha256(self) -> str:
        """Returns the SHA-256 of the whole file once its documents were read; what was streamed is not read again."""
        if self._hashed is not None:
            return self._hashed.hexdigest()
        with open_regular(self.part.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def __iter__(self) -> Iterator[str]:
        match self.format:
            case "damaged":
                suffix = self.part.path.suffix
                self.tally.skip(1, Unusable("damaged_file", f", which does not begin as a {suffix} file does"))
            case "parquet" | "arrow":
                yield from self._columns()
            case "lines" | "text":
                yield from self._bytes()

    def _bytes(self) -> Iterator[str]:
        part = self.part
        with open(part.path, "rb", buffering=0) as raw:
            if part.end is not None:
                file: Any = io.BufferedReader(raw, CHUNK)
                skip_to_line(file, part.start)
                self.tally.unit = f"line after byte {part.start:,}:" if part.start else "line"
                for document in documents_of_lines(file, self.tally, end=float(part.end)):
                    self._done = file.tell() - part.start
                    yield document
                return
            self._hashed = HashedFile(raw)
            try:
                file = opened(self._hashed, self.compression)
                yield from self._whole_text(file) if self.format == "text" else documents_of_lines(file, self.tally)
            except EOFError:
                self._fault("truncated_file", ": the compressed data end too soon")
            except ExpandsTooFar as error:
                self._fault("expands_too_far", f": {error}")
            except (zlib.error, gzip.BadGzipFile, ValueError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the decoder
                    raise
                cut = "Truncated" in str(error)
                self._fault("truncated_file" if cut else "damaged_file", f": {str(error)[:100]}")
            self._hashed.read_on()

    def _fault(self, reason: str, detail: str) -> None:
        """Counts the fault that ends a file early as one more line, after those that were read."""
        self.tally.skip(self.tally.used + self.tally.skipped.total() + 1, Unusable(reason, detail))

    def _whole_text(self, file: io.BufferedReader) -> Iterator[str]:
        raw = file.read(MAX_TEXT_BYTES + 1)
        try:
            if len(raw) > MAX_TEXT_BYTES:
                raise Unusable("text_too_large", f", over {MAX_TEXT_BYTES // 2**20} MiB: write it as JSON lines")
            document = decode_document(raw)
        except Unusable as fault:
            self.tally.skip(1, fault)
            return
        self.tally.used += 1
        yield document

    def _columns(self) -> Iterator[str]:
        import pyarrow

        batches = parquet_batches if self.format == "parquet" else arrow_batches
        try:
            for row, batch, share in batches(self.part):
                yield from self._cells(row, batch)
                self._done = int(share * self.part.size)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self._fault("damaged_file", f": {' '.join(str(error).split())[:100]}")

    def _cells(self, first: int, batch: Any) -> Iterator[str]:
        """Yields the strings of column "text"; `first` is the number of the batch's first row, from 0."""
        import pyarrow

        place = batch.schema.get_field_index("text")  # -1 where there is none, or more than one
        if batch.schema.names.count("text") > 1:
            fault = Unusable("missing_text", ", which has several columns 'text': rename or remove all but one")
            self.tally.skip(first + 1, fault, count=batch.num_rows)
            return
        if place < 0 or not is_text(batch.schema.field(place).type):
            held = keys_of(dict.fromkeys(batch.schema.names)) if place < 0 else f", a {batch.schema.field(place).type}"
            held = held.replace("the key", "the column")
            fault = Unusable("missing_text", f"{held}: the document belongs under 'text' as a string")
            self.tally.skip(first + 1, fault, count=batch.num_rows)
            return
        column = batch.column(place)
        for start in range(0, len(column), ROWS_AT_ONCE):
            some = column.slice(start, ROWS_AT_ONCE)
            if pyarrow.types.is_dictionary(some.type):
                some = some.dictionary_decode()
            for row, cell in enumerate(some.cast(pyarrow.large_binary()).to_pylist(), first + start + 1):
                try:
                    document = document_of_cell(cell)
                except Unusable as fault:
                    self.tally.skip(row, fault)
                    continue
                self.tally.used += 1
                yield document


def mark_damaged(files: TextFiles, tallies: Iterable[tuple[Path, LineTally]]) -> None:
    """Lets those files leave the cache that end early by a fault, or of which nothing could be used."""
    used: Counter[Path] = Counter()
    faulty = set()
    for path, tally in tallies:
        used[path] += tally.used
        if not tally.skipped.keys().isdisjoint(FILE_FAULTS):
            faulty.add(path)
    for held in files.held:
        held.is_damaged |= held.path in used and (held.path in faulty or not used[held.path])


def document_of_cell(cell: bytes | None) -> str:
    if cell is None:
        raise Unusable("missing_text")
    if len(cell) > MAX_CELL_BYTES:
        raise Unusable("text_too_large")
    return decode_document(cell)


def is_text(kind: Any) -> bool:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())


def parquet_batches(part: TextPart) -> Iterator[tuple[int, Any, float]]:
    """Yields (number of the first row, batch, share of the part that is read), with column "text" alone if there."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(part.path, pre_buffer=False, buffer_size=CHUNK) as file:
        groups = range(part.start, file.num_row_groups if part.end is None else part.end)
        row = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
        columns = ["text"] if file.schema_arrow.names.count("text") == 1 else None
        if columns is None or not is_text(file.schema_arrow.field("text").type):
            count = sum(file.metadata.row_group(group).num_rows for group in groups)
            yield row, UnreadRows(file.schema_arrow, count), 1.0
            return
        for done, group in enumerate(groups, 1):
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
                yield row, batch, (done - 1) / len(groups)
                row += batch.num_rows


class UnreadRows(NamedTuple):
    """Placeholder for rows without a text, which are counted and not read."""

    schema: Any
    num_rows: int


def arrow_batches(part: TextPart) -> Iterator[tuple[int, Any, float]]:
    """Yields the same as `parquet_batches` for a file in Arrow's file or stream format, which is mapped."""
    import pyarrow

    with pyarrow.memory_map(str(part.path)) as file:
        row = 0
        is_stream = file.read(6) != b"ARROW1"
        file.seek(0)
        reader = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
        batches = reader if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            yield row, batch, file.tell() / max(1, part.size) if is_stream else 0.0
            row += batch.num_rows


def skip_to_line(file: io.BufferedReader, start: int) -> None:
    """Moves the file to the first line that begins at `start` or later."""
    file.seek(max(0, start - 1))
    if start and file.read(1) != b"\n":
        skip_line(file)


class HashedFile(io.RawIOBase):
    """A file whose bytes are hashed and counted while it is read."""

    def __init__(self, raw: io.FileIO) -> None:
        self.raw = raw
        self.count = 0
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.raw.readinto(buffer) or 0
        self._digest.update(memoryview(buffer)[:count])
        self.count += count
        return count

    def read_on(self) -> None:
        """Reads the rest of the file, which a fault or the end of the last document left unread."""
        while self.read(CHUNK):
            pass

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class ExpandsTooFar(ValueError):
    """Error for a compressed file that was made to fill disks or memory."""


class Decompressed(io.RawIOBase):
    """Stream of the text of a compressed file. Reading raises ExpandsTooFar where it expands without bound."""

    def __init__(self, stream: Any, packed: HashedFile) -> None:
        self.stream = stream
        self.packed = packed
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        some = self.stream.read1(min(len(buffer), STEP))
        count = len(some)
        buffer[:count] = some
        self.count += count
        if self.count > max(FREE_EXPANSION, MOST_EXPANSION * self.packed.count):
            raise ExpandsTooFar(f"it is over {MOST_EXPANSION:,} times as large as the compressed data")
        return count


class ZstdStream:
    """Stream of Zstandard data up to the byte at which they are cut or damaged; then the decoder's OSError.

    The decoder drops its buffer when it meets an error, so the data are then read again up to that place, and from
    there byte by byte.
    """

    def __init__(self, file: HashedFile) -> None:
        self.path = str(file.raw.name)
        self.stream = _zstd(file)
        self.count = 0
        self.step = STEP

    def read1(self, size: int) -> bytes:
        try:
            some = self.stream.read(min(size, self.step))
        except OSError as error:
            if error.errno is not None or self.step == 1:
                raise
            self._go_back()
            some = self.stream.read(1)
        self.count += len(some)
        return some

    def _go_back(self) -> None:
        self.stream, self.step = _zstd(open(self.path, "rb")), 1  # noqa: SIM115  # the stream closes it
        left = self.count
        while left:
            left -= len(self.stream.read(min(left, STEP)))


def _zstd(file: Any) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")


def opened(file: HashedFile, compression: Compression | None) -> io.BufferedReader:
    if compression is None:
        return io.BufferedReader(file, CHUNK)
    if compression == "gzip":
        stream: Any = gzip.GzipFile(fileobj=io.BufferedReader(file, CHUNK))
    else:
        stream = ZstdStream(file)
    return io.BufferedReader(Decompressed(stream, file), CHUNK)
