"""Image files whose bytes have changed since they were indexed, which makes their index older than the data.

Each start asks the file system about every image file, and reads only those that were touched since all of them were
last known to be unchanged.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice, repeat

from arlow_vl.data.index.header import SHARDS, write_header
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.reading import Index
from arlow_vl.data.remote import is_address
from arlow_vl.data.samples import ImageRef
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

TICK_NS = 2 * 10**9
"""Tick of the coarsest clock of a file system: a change may bear a time that is earlier by this much."""
ASKED_AT_ONCE = 16
"""Concurrent calls of stat: a network file system takes a millisecond for each, but answers many at a time."""
IN_A_TASK = 256


def changed_image(index: Index, *, threads: int = 1) -> str | None:
    """Returns the first image file that has changed, for messages; None: none has, which is noted in the index.

    A missing file does not count: cached features no longer need it, and reading it raises. `threads` read images.
    """
    since = index.header.images_read_ns
    if since is None or index.header.format == SHARDS:
        return None
    now, has_own, read = _now(index), False, 0
    met: set[str] = set()
    with ThreadPoolExecutor(ASKED_AT_ONCE) as asking, ThreadPoolExecutor(threads) as reading:
        for images in _batches(_own_images(index)):
            has_own = True
            tasks = [images[start : start + IN_A_TASK] for start in range(0, len(images), IN_A_TASK)]
            touched = asking.map(_touched, tasks, repeat(since - TICK_NS))
            suspects = {image.path: image for some in touched for image in some if image.path not in met}
            met |= suspects.keys()
            read += len(suspects)
            for image, is_same in zip(suspects.values(), reading.map(_is_same, suspects.values()), strict=True):
                if not is_same:
                    return visible(image.path)
    if now is not None and (read or not has_own):
        index.header = replace(index.header, images_read_ns=now if has_own else None)
        with contextlib.suppress(OSError):  # a read-only folder: they are read again next time
            write_header(index.folder, index.header)
    return None


def _own_images(index: Index) -> Iterator[ImageRef]:
    """Yields the images that are local files: not inside a table or the index's own file, and not remote."""
    files = {os.path.join(index.base, file.name) for file in index.header.files}
    files.add(str(index.folder / index.header.images_name))
    return (image for image in index.images() if image.path not in files and not is_address(image.path))


def _batches(images: Iterator[ImageRef]) -> Iterator[list[ImageRef]]:
    while some := list(islice(images, ASKED_AT_ONCE * IN_A_TASK)):
        yield some


def _touched(images: Sequence[ImageRef], since: int) -> list[ImageRef]:
    """Returns the images whose files were touched after `since`, a ctime in nanoseconds, and still exist."""
    found = []
    for image in images:
        with contextlib.suppress(OSError):
            if os.stat(image.path).st_ctime_ns > since:
                found.append(image)
    return found


def _is_same(image: ImageRef) -> bool:
    try:
        read_image(image)
    except DataError:
        return not os.path.exists(image.path)
    return True


def _now(index: Index) -> int | None:
    """Returns the time by the clock of the index's file system, in nanoseconds; None: its folder is read-only."""
    try:
        with tempfile.TemporaryFile(dir=index.folder) as file:
            return os.fstat(file.fileno()).st_ctime_ns
    except OSError:
        return None
