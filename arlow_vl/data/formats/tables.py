"""Parquet and Arrow files and Hugging Face datasets saved with `save_to_disk`: a record a row, images as bytes.

An image column holds {"bytes", "path"} as Hugging Face datasets write it, or bytes, or paths; the texts are columns
named as the fields of `conversations`: messages, conversations, texts, question and answer, text or caption.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.conversations import IMAGE_FIELDS, READ_FIELDS, TEXT_FIELDS, samples_of_records
from arlow_vl.data.formats.images import ImageRoot
from arlow_vl.data.formats.json_files import Record, load_json
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.samples import Sample
from arlow_vl.data.shard_faults import ShardFault
from arlow_vl.data.text import Unusable, keys_of, open_regular, refuse_equal_columns
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

SUFFIXES = (".parquet", ".arrow")
ROWS_AT_ONCE = 32  # of images of some megabytes each
SAVED_STATE, SAVED_SPLITS = "state.json", "dataset_dict.json"


def read(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Yields a sample for each whole row, named by its file and row; only some rows are in memory at a time."""
    for path, name in names_of(files).items():
        yield from samples_of_records(_rows(path, name, tally), images.of(path), tally)


def saved_files(folder: Path) -> list[Path]:
    """Returns the files of a dataset saved with `save_to_disk`, in its order.

    Raises:
        DataError: the folder holds several splits, or its state.json names no files.
    """
    if (folder / SAVED_SPLITS).is_file():
        splits = sorted(state.parent.name for state in folder.glob(f"*/{SAVED_STATE}"))
        raise DataError(
            f"{visible(str(folder))}: holds the splits {visible(', '.join(splits))}; name the folder of one"
        )
    state = load_json(folder / SAVED_STATE)
    entries = state.get("_data_files") if isinstance(state, dict) else None
    names = [entry.get("filename") for entry in entries or [] if isinstance(entry, dict)]
    files = [folder / name for name in names if isinstance(name, str) and Path(name).name == name]
    if not names or len(files) < len(names):
        raise DataError(f"{visible(str(folder))}: its {SAVED_STATE} names no files; save the dataset again")
    return files


def _rows(path: Path, called: str, tally: Tally) -> Iterator[Record]:
    """Yields rows with the columns that can matter. Damage to the file is counted; the rows before it are used.

    Raises:
        DataError: pyarrow is not installed, or no column is a text's.
    """
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise DataError(f"{visible(str(path))}: reading it needs pyarrow; install pyarrow") from None
    open_regular(path).close()
    try:
        done = 0
        for batch in _batches(path):
            yield from _rows_of(batch, called, done, tally)
            done += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        tally.faults.append(ShardFault(str(path), f"unreadable: {reason}"))


def _rows_of(batch: Any, called: str, done: int, tally: Tally) -> Iterator[Record]:
    """Yields the rows of a batch after `done` others. If converting them to Python fails, each is tried alone."""
    batch = batch.select([column.name for column in batch.schema if _can_matter(column)])
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = [None] * batch.num_rows
    for number, row in enumerate(rows):
        name = f"{called}: row {done + number + 1:,}"
        if row is None:
            try:
                [row] = batch.slice(number, 1).to_pylist()
            except (ValueError, OverflowError) as error:
                reason = "not_utf8" if isinstance(error, UnicodeDecodeError) else "row_unreadable"
                tally.leave_out(name, Unusable(reason, f": {str(error)[:100]}"))
                continue
        yield name, row


def _can_matter(column: Any) -> bool:
    """Returns True if a column is read or may hold short facts: other types, as times, need not be convertible."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    is_word = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_number = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return column.name in READ_FIELDS or is_word or is_number


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow

    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as table:
            _check_columns(path, table.schema_arrow.names)
            yield from table.iter_batches(batch_size=ROWS_AT_ONCE)
        return
    with pyarrow.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            file.seek(0)
            reader = batches = pyarrow.ipc.open_stream(file)
        _check_columns(path, reader.schema.names)
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                yield batch.slice(start, ROWS_AT_ONCE)


def _check_columns(path: Path, names: list[str]) -> None:
    if not set(names) & set(TEXT_FIELDS):
        has = keys_of(dict.fromkeys(names)).replace("key", "column")
        advice = f"name the texts {', '.join(TEXT_FIELDS)} and the images {IMAGE_FIELDS[0]} or {IMAGE_FIELDS[1]}"
        raise DataError(f"{visible(str(path))}: no column of texts{visible(has)}; {advice}")
    refuse_equal_columns(path, names)
