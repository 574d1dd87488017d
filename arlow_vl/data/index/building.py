"""Builds the indexes of sources that have none, or one that is older than the data."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arlow_vl.data.formats.images import is_usable_file
from arlow_vl.data.index.changed_images import changed_image
from arlow_vl.data.index.header import SHARDS, bad_samples
from arlow_vl.data.index.places import SourceLocation, find_index, place_of
from arlow_vl.data.index.reading import Index
from arlow_vl.data.index.writing import CANNOT_WRITE, Source, write_index
from arlow_vl.data.processes import in_processes
from arlow_vl.data.remote import PATIENCE, hold, name_of, without_secrets
from arlow_vl.errors import DataError, ResourceError
from arlow_vl.printing import print_line, visible

OF_IMAGE_FILES = {"missing_image_file", "image_empty", "image_too_large", "image_unreadable"}
"""Reasons to leave out a sample that may no longer hold when its image files have been repaired."""
ONE_TRY = replace(PATIENCE, retry_seconds=0.0)
Progress = Callable[[int, int, int], None]
"""Called with the samples indexed so far, the parts that are ready, and all parts."""


def indexes_of(
    path: str | Path,
    *,
    images: str | Path | None = None,
    format: str | None = None,
    workers: int = 1,
    compares_images: bool = True,
    progress: Progress = lambda samples, ready, parts: None,
) -> list[Index]:
    """Returns the indexes of all parts of a source, in order; those missing or older than the data are built.

    They are written beside the data, or into the cache where that folder is not writable.

    Args:
        workers: Processes that index shards, or threads that read the images of another format.
        compares_images: True: image files that have changed make an index older than the data. It is
            enough if one process of a run checks.

    Raises:
        DataError: there are no such data, or their format is unknown.
        ResourceError: there is no room for an index.
    """
    places, files = parts_of(place_of(path, images, format))
    found = {place: find_index(place, files)[0] for place in places}
    came_anew = _came_anew(found)
    missing = [
        place
        for place, index in found.items()
        if index is None
        or place in came_anew
        or _may_be_mended(place, index)
        or (compares_images and _has_changed_image(place, index, workers))
    ]
    ready, samples = len(places) - len(missing), 0
    if len(missing) == 1:
        index = _build(missing[0], workers, lambda done: progress(done, ready, len(places)))
        found[missing[0]] = index
        progress(len(index), len(places), len(places))
    else:
        for place, index in in_processes(_build, missing, min(workers, len(missing) or 1)):
            found[place], ready, samples = index, ready + 1, samples + len(index)
            progress(samples, ready, len(places))
    return [index for place in places if (index := found[place]) is not None]


def parts_of(place: SourceLocation) -> tuple[list[SourceLocation], Sequence[Path] | None]:
    """Returns the parts of a source that have an index each, and the files that its only part must be made of.

    The files are None where each part is one file, and for remote data.
    """
    if place.is_remote:  # nothing is fetched before it is needed
        from arlow_vl.data.formats.detect import files_at_address

        addresses = files_at_address(place.path)
        is_shards = place.format == SHARDS or (place.format is None and all(map(_is_tar, addresses)))
        return [place_of(one, format=place.format) for one in addresses] if is_shards else [place], None
    source = _open(place)
    if source.format != SHARDS:
        return [place], source.files
    return [place_of(file, format=None if file.suffix == ".tar" else place.format) for file in source.files], None


def _is_tar(address: str) -> bool:
    return name_of(address).endswith(".tar")


def _may_be_mended(place: SourceLocation, index: Index) -> bool:
    """Returns True if a local file was damaged, or an image file that could not be used can be used now."""
    if place.is_remote:
        return False
    if index.header.faults or not index.header.bad.keys() & OF_IMAGE_FILES:
        return bool(index.header.faults)
    try:
        left_out = bad_samples(index.folder, index.header)
        return any(is_usable_file(file) for bad in left_out for file in bad.get("image_files", ()))
    except (OSError, ValueError):  # the list is damaged
        return True


def _came_anew(found: Mapping[SourceLocation, Index | None]) -> set[SourceLocation]:
    """Returns the places at addresses whose damaged files, which have left the cache, come with other bytes now.

    If the same bytes come, they stay in the cache and the index as it is. So does the index where they cannot be
    fetched: a warning says so, and no other file is asked for.
    """
    came = set()
    try:
        for place, index in found.items():
            if place.is_remote and index is not None and _comes_anew(place, index):
                came.add(place)
    except (DataError, ResourceError) as error:
        print_line(f"warning: {error}; what is indexed of it is used", file=sys.stderr)
    return came


def _comes_anew(place: SourceLocation, index: Index) -> bool:
    from arlow_vl.data.formats.detect import files_at_address

    damaged = {fault.shard for fault in index.header.faults}
    if len(index) and not damaged:
        return False
    known = {file.sha256 for file in index.header.files}
    for address in files_at_address(place.path):
        if not len(index) or without_secrets(address) in damaged:
            with hold(address, patience=ONE_TRY) as held:
                if held.sha256 not in known:
                    return True
    return False


def _has_changed_image(place: SourceLocation, index: Index, threads: int) -> bool:
    """Returns True if an image file has changed, and prints its name."""
    if (path := changed_image(index, threads=threads)) is None:
        return False
    print_line(f"{place.shown}: {path} has other bytes than when it was indexed; indexed again", file=sys.stderr)
    return True


def _build(place: SourceLocation, threads: int = 1, progress: Callable[[int], None] = lambda samples: None) -> Index:
    beside, cache = place.folders
    how = {"name": place.name, "base": place.base, "threads": threads, "progress": progress}
    try:
        index = _write(beside, place, how)
        return place.index_in(index.folder, index.header)
    except OSError as error:
        if error.errno not in CANNOT_WRITE or not _is_in(error.filename, beside):
            raise
    try:
        return _write(cache, place, how)
    except OSError as error:
        if error.errno not in CANNOT_WRITE or not _is_in(error.filename, cache):
            raise
        raise ResourceError(
            f"the index of {place.shown} can be written neither beside it nor to {visible(str(cache))} "
            f"({error.strerror}); set XDG_CACHE_HOME to a folder that can be written"
        ) from None


def _write(folder: Path, place: SourceLocation, how: dict[str, Any]) -> Index:
    with contextlib.closing(_open(place)) as source:  # the next shard may need its room in the cache
        return write_index(folder, source, **how)


def _is_in(path: str | None, folder: Path) -> bool:
    """Returns True for an error about a folder for indexes or one above it, not about the data."""
    return path is not None and os.path.commonpath([path, folder]) in (path, str(folder))


def _open(place: SourceLocation) -> Source:
    from arlow_vl.data.formats.detect import open_source

    return open_source(place.path, images=place.images, format=place.format)
