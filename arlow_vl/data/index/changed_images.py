"""Images in files of their own that have other bytes than when they were indexed.

An index is older than the data when one has. Each start asks the file system about every such image and reads only
those that something was done to since all were last known to be the same: some 20 microseconds an image.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from arlow_vl.data.index.header import write_header
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.places import SHARDS
from arlow_vl.data.index.reading import Index
from arlow_vl.data.remote import is_address
from arlow_vl.data.samples import ImageRef
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

TICK_NS = 2 * 10**9
"""The coarsest clock of a file system: what is done within a tick of it may bear the time of its beginning."""
AT_ONCE = 1024


def changed_image(index: Index, *, threads: int = 1) -> str | None:
    """The first image that has other bytes, for messages; None: there is none, which is noted in the index.

    An image that is gone is none: features in a cache need it no more, and who reads it is told.
    """
    since = index.header.images_read_ns
    if since is None or index.header.format == SHARDS:
        return None
    now = _now(index)
    suspects, read = _Suspects(index, since), 0
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(suspects.images, AT_ONCE)):
            read += len(some)
            for image, is_same in zip(some, pool.map(_is_same, some), strict=True):
                if not is_same:
                    return visible(image.path)
    if now is not None and (read or not suspects.has_own):
        index.header = replace(index.header, images_read_ns=now if suspects.has_own else None)
        with contextlib.suppress(OSError):  # a folder of others: they are read again next time
            write_header(index.folder, index.header)
    return None


class _Suspects:
    """Images to which something was done since a time, each once."""

    def __init__(self, index: Index, since: int) -> None:
        self.has_own = False
        """Whether images in files of their own were met."""
        self._index, self._since = index, since
        names = [os.path.join(index.base, file.name) for file in index.header.files]
        self._files = {*names, str(index.folder / index.header.images_name)}
        self.images = self._all()

    def _all(self) -> Iterator[ImageRef]:
        met: set[str] = set()
        for image in self._index.images():
            if image.path in self._files or is_address(image.path):
                continue
            self.has_own = True
            try:
                changed = os.stat(image.path).st_ctime_ns
            except OSError:
                continue
            if changed > self._since - TICK_NS and image.path not in met:
                met.add(image.path)
                yield image


def _is_same(image: ImageRef) -> bool:
    try:
        read_image(image)
    except DataError:
        return not os.path.exists(image.path)
    return True


def _now(index: Index) -> int | None:
    """The time by the clock of the index's file system; None: nothing can be noted there."""
    try:
        with tempfile.TemporaryFile(dir=index.folder) as file:
            return os.fstat(file.fileno()).st_ctime_ns
    except OSError:
        return None
