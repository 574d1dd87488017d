"""Existing indexes of a source, for a check that must be quick: none is built, and little is read."""

from collections.abc import Collection, Iterable
from pathlib import Path

from arlow_vl.data.index.building import parts_of
from arlow_vl.data.index.header import File, base_of, read_header
from arlow_vl.data.index.places import SourceLocation, find_index, place_of
from arlow_vl.data.index.reading import Index
from arlow_vl.data.remote import needs_listing
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of

MOST_HASHED = 8 * 10**9
"""Maximum bytes to hash, of files whose time is not the one in the index: 20 s at 0.42 GiB/s on one core."""
MOST_IMAGES = 4_000_000
"""Maximum number of images whose hashes are read: a minute at 72,000 a second on one core."""


def ready_indexes(
    path: str | Path, *, images: str | Path | None = None, format: str | None = None, most_hashed: int = MOST_HASHED
) -> list[Index]:
    """Returns the indexes of all parts of a source, in order.

    Raises:
        DataError: the source is missing, has no index that fits it, or checking that would take long.
    """
    place = place_of(path, images, format)
    if place.is_remote and needs_listing(place.path):
        raise DataError(f"{place.shown} would have to be listed over the network")
    places, files = parts_of(place)
    if (changed := sum(map(bytes_to_hash, places))) > most_hashed:
        raise DataError(f"{place.shown} has other times than when it was indexed: {changed / 1e9:,.0f} GB to compare")
    indexes = []
    for one in places:
        index, reason = find_index(one, files)
        if index is None:
            raise DataError(f"{one.shown} {reason}")
        indexes.append(index)
    if (count := sum(index.header.totals["images"] for index in indexes)) > MOST_IMAGES:
        raise DataError(f"{place.shown} holds {number_of(count, 'image')}")
    return indexes


def bytes_to_hash(place: SourceLocation) -> int:
    """Returns the bytes of files that have the size, but not the time, in the index, so that a hash must decide."""
    if place.is_remote:
        return 0
    headers = [(folder, header) for folder in place.folders if (header := read_header(folder)) is not None]
    return sum(
        file.size
        for folder, header in headers
        for file in header.files
        if _has_other_time(base_of(folder, header), file)
    )


def _has_other_time(base: Path, file: File) -> bool:
    try:
        state = (base / file.name).stat()
    except OSError:
        return False
    return state.st_size == file.size and state.st_mtime_ns != file.mtime_ns


def shared_images(indexes: Iterable[Index], wanted: Collection[bytes]) -> set[bytes]:
    """Returns the SHA-256 of those wanted images that some sample contains."""
    return {image.sha256 for index in indexes for image in index.images() if image.sha256 in wanted}
