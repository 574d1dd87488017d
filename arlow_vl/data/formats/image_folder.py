"""A folder of images with their captions or questions in a table, or each caption in a text file beside its image.

metadata.csv     file_name,text            metadata.jsonl   {"file_name": "fox.jpg", "text": "A fox."}
                 fox.jpg,A fox.            fox.jpg, fox.txt the caption of fox.jpg

captions.csv     file_name,question,answer,kind
                 fox.jpg,What is it?,a fox,animals
"""

import csv
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arlow_vl.data.file_names import files_under, names_of
from arlow_vl.data.formats.conversations import CAPTION_FIELDS, IMAGE_FIELDS
from arlow_vl.data.formats.images import ImageRoot
from arlow_vl.data.formats.json_files import LINE_SUFFIXES, Record, read_records
from arlow_vl.data.formats.messages import clean_string
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.formats.vqa import question_text
from arlow_vl.data.member_names import IMAGE_SUFFIXES, system_file
from arlow_vl.data.samples import ImageRef, Sample, Text, caption_text
from arlow_vl.data.shard_samples import ReaderLimits
from arlow_vl.data.text import (
    MAX_LINE_BYTES,
    Unusable,
    clean_caption,
    keys_of,
    open_regular,
    refuse_equal_columns,
    refuse_utf16,
)
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

TABLE_NAMES = tuple(
    f"{stem}{suffix}" for stem in ("metadata", "captions") for suffix in (".csv", ".tsv", *LINE_SUFFIXES)
)
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_IMAGE_FIELDS = tuple(name for name in IMAGE_FIELDS if name != "images")
QUESTION = "question"
OTHER_DELIMITERS = (";", "\t", "|", ",")
MAX_CAPTION_BYTES = ReaderLimits.max_text_bytes


def read_table(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Yields a sample for each image; rows that name the same image are its texts. The key is the image's name.

    A row that holds its image's bytes is a sample by itself and is yielded at once. All others are read first, with
    their texts pickled, which halves the memory.
    """
    by_image: dict[str, tuple[ImageRef, list[bytes]]] = {}
    lost: dict[str, int] = {}
    named: set[str] = set()  # images whose rows may hold no usable text
    for path, called in names_of(files).items():
        start = images.of(path)
        for name, row in _rows(path, called, tally):
            source = None
            try:
                source = _field(row, TABLE_IMAGE_FIELDS, "image")
                image = start.find(source)
            except Unusable as fault:
                _lose_image(_shared_name(source, fault) or name, lost, name, fault, tally)
                continue
            holds_image = isinstance(image, bytes)
            try:
                text = _text(row, tally)
            except Unusable as fault:
                if holds_image:
                    tally.leave_out(name, fault)
                else:
                    tally.leave_out_text(name, fault, "question" if row.get(QUESTION) else "caption")
                    named.add(image.path)
                continue
            if holds_image:
                yield tally.use(Sample(name, (image,), (text,)))
            else:
                by_image.setdefault(image.path, (image, []))[1].append(pickle.dumps(text))
    for path, (image, texts) in by_image.items():
        yield tally.use(Sample(os.path.relpath(path, images.root), (image,), tuple(map(pickle.loads, texts))))
    for path in sorted(named - by_image.keys()):
        key = os.path.relpath(path, images.root)
        tally.leave_out(f"image {key}", Unusable("missing_text", ": no usable text"), members=0)


def _lose_image(image: str, lost: dict[str, int], name: str, fault: Unusable, tally: Tally) -> None:
    """Counts an image that cannot be used once, with all its rows; `lost` has its place among the bad samples."""
    if image in lost:
        before = tally.bad[lost[image]]
        tally.bad[lost[image]] = before._replace(members=before.members + 1)
    else:
        lost[image] = len(tally.bad)
        tally.leave_out(name, fault)


def _shared_name(source: Any, fault: Unusable) -> str | None:
    """Returns the name that other rows have for an unusable image: its path or address; else None."""
    if fault.image_files:
        return fault.image_files[0]
    is_name = isinstance(source, str) and source.strip() and source[:5].lower() != "data:"
    return source if is_name else None


def _rows(path: Path, called: str, tally: Tally) -> Iterator[Record]:
    if path.suffix.lower() in DELIMITERS:
        yield from _csv_rows(path, called, tally)
    else:
        yield from read_records(path, called, tally)


def _csv_rows(path: Path, called: str, tally: Tally) -> Iterator[Record]:
    """Raises DataError where no column holds images or texts: one sentence is better than a reason for each row.

    Quotes are strict: otherwise an unclosed one would turn the rows after it into a caption.
    """
    with open_regular(path) as file:
        refuse_utf16(path, file.read(2))
    delimiter = DELIMITERS[path.suffix.lower()]
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        csv.field_size_limit(MAX_LINE_BYTES)  # the module's own 131,072 are fewer than a data: URL has
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        columns = _columns(path, reader, delimiter)
        while True:
            before = reader.line_num
            try:
                cells = next(reader, None)
            except csv.Error as error:
                _lose_lines(f"{called}: line {before + 1:,}", error, reader.line_num - before, tally)
                continue
            if cells is None:
                return
            if not cells:  # a blank line
                continue
            name = f"{called}: line {reader.line_num:,}"
            if len(cells) > len(columns):
                detail = f": the header has {len(columns)} columns; quote a text with a {delimiter!r}"
                tally.leave_out(name, Unusable("too_many_columns", detail))
                continue
            row = dict.fromkeys(columns) | dict(zip(columns, cells, strict=False))
            if not _is_utf8(row):
                tally.leave_out(name, Unusable("not_utf8"))
                continue
            yield name, row


def _lose_lines(name: str, error: csv.Error, lines: int, tally: Tally) -> None:
    """Counts every line that a fault spans: each may be a row."""
    reached = f" over {lines:,} lines" if lines > 1 else ""
    detail = f": {error}{reached}; close each quote that begins a cell, and write one inside as two"
    tally.leave_out(name, Unusable("bad_csv", detail), count=max(1, lines))


def _columns(path: Path, reader: Any, delimiter: str) -> list[str]:
    try:
        columns = next(reader, [])
    except csv.Error:
        columns = []
    if len(columns) == 1 and (other := next((sign for sign in OTHER_DELIMITERS if sign in columns[0]), None)):
        raise DataError(
            f"{visible(str(path))}: its columns are separated by {other!r}; "
            "write commas in a .csv, and name a table with tabs .tsv"
        )
    for what, names in {"image": TABLE_IMAGE_FIELDS, "text": (*CAPTION_FIELDS, QUESTION)}.items():
        if not set(columns) & set(names):
            has = keys_of(dict.fromkeys(columns)).replace("key", "column")
            advice = f"name it {' or '.join(names)} in the first line"
            raise DataError(f"{visible(str(path))}: no column of {what}s{visible(has)}; {advice}")
    refuse_equal_columns(path, columns)
    return columns


def _is_utf8(row: dict[str, Any]) -> bool:
    try:
        "".join(value for value in row.values() if value is not None).encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(row: dict[str, Any], tally: Tally) -> Text:
    """Returns a question where the row asks one, else a caption."""
    if row.get(QUESTION):
        return question_text(row, row, tally)
    return caption_text(clean_string(_field(row, CAPTION_FIELDS, "text"), "text"))


def _field(row: dict[str, Any], names: tuple[str, ...], what: str) -> Any:
    """Returns the first of these fields that is not empty; None where all are."""
    if not any(name in row for name in names):
        raise Unusable(f"missing_{what}", f"{keys_of(row)}: it belongs under {' or '.join(names[:3])}")
    return next((row[name] for name in names if row.get(name) is not None), None)


def caption_files(folder: Path) -> list[Path]:
    """Returns the .txt files under a folder, which belong to images."""
    paths = [path for path in files_under(folder) if path.lower().endswith(".txt")]
    return [Path(path) for path in paths if system_file(os.path.basename(path)) is None]


def read_sidecars(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Yields a sample for each image with a text file of its name; the key is its path in the folder without suffix."""
    texts: dict[str, list[Path]] = {}
    for file in files:
        texts.setdefault(str(file)[: -len(".txt")], []).append(file)
    by_stem: dict[str, list[str]] = {}
    for path in files_under(images.root):
        stem, suffix = os.path.splitext(path)
        suffix = suffix.lower()
        if left_over := system_file(os.path.basename(path)):
            tally.ignored[left_over] += 1
        elif suffix[1:] in IMAGE_SUFFIXES:
            by_stem.setdefault(stem, []).append(path)
        elif suffix != ".txt":
            tally.ignored[suffix[:80]] += 1
    for stem in sorted(by_stem.keys() | texts.keys()):
        key = os.path.relpath(stem, images.root)
        try:
            sample = _sidecar_sample(key, by_stem.get(stem, []), texts.get(stem, []), images)
        except Unusable as fault:
            tally.leave_out(key, fault)
            continue
        yield tally.use(sample)


def _sidecar_sample(key: str, paths: list[str], texts: list[Path], images: ImageRoot) -> Sample:
    if not _is_utf8({"key": key}):
        raise Unusable("unsafe_name", ": its name is not UTF-8")
    if len(paths) != 1:
        raise Unusable("several_images" if paths else "missing_image")
    if len(texts) != 1:  # two are fox.txt and fox.TXT
        raise Unusable("several_texts" if texts else "missing_text", f": write it into {key}.txt")
    with open_regular(texts[0]) as file:
        raw = file.read(MAX_CAPTION_BYTES + 1)
    if len(raw) > MAX_CAPTION_BYTES:
        raise Unusable("text_too_large", f": the limit is {MAX_CAPTION_BYTES:,} bytes")
    return Sample(key, (images.find(paths[0]),), (caption_text(clean_caption(raw)),))
