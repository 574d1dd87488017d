"""Images that are the same, or nearly, in two sources: within each, and of the second in the first.

Images with the same SHA-256, which is in the indexes, are the same and are decoded once. Images with the same print are
a class; two classes are near each other or not.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.reading import Index, IndexedSamples
from arlow_vl.data.index.records import refs
from arlow_vl.data.overlap.pairs import MOST_BITS, near_pairs
from arlow_vl.data.overlap.prints import PRINT, Fault, print_of
from arlow_vl.data.processes import in_processes
from arlow_vl.data.samples import ImageRef
from arlow_vl.errors import DataError
from vision.decoding.image import ImageError, decode_image

BUNCH = 32
"""Images that a process decodes at once."""
Bunch = list[tuple[int, ImageRef]]


class Pair(NamedTuple):
    """Two images that are the same or nearly, by the keys of their samples; `key, image 2` where there are several."""

    first: str
    """Key of the earlier one, or across two sources of the one in the first."""
    second: str
    distance: int
    """Bits of 256 in which their prints differ."""
    exact: bool
    """True: they have the same bytes."""


@dataclass
class Side:
    """Images of one source, and the pairs among them."""

    samples: int = 0
    images: int = 0
    different: int = 0
    """Number of distinct images, by SHA-256."""
    unreadable: Counter[str] = field(default_factory=Counter)
    """Number of distinct images without a print, by reason; they are compared by their bytes alone."""
    pairs: list[Pair] = field(default_factory=list)
    """Pairs within the source. Of several that are the same, each is paired with the first."""


@dataclass
class Overlap:
    first: Side
    second: Side
    across: list[Pair] = field(default_factory=list)
    """Each image of the second source that is in the first, with the nearest one there."""
    samples: int = 0
    """Number of samples of the second source with an image that is in the first."""
    is_complete: bool = True
    """False: images are so alike that the search for near pairs ended at a limit."""

    @property
    def share_of_images(self) -> float:
        """Share of the second source's images that are in the first."""
        return len(self.across) / self.second.images if self.second.images else 0.0

    @property
    def share_of_samples(self) -> float:
        return self.samples / self.second.samples if self.second.samples else 0.0


class _Placed(NamedTuple):
    """An image of a sample."""

    name: str
    sample: int
    image: int
    """Number of the image among all distinct ones."""


def overlap_of(
    first: Sequence[Index],
    second: Sequence[Index],
    *,
    most_bits: int = MOST_BITS,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> Overlap:
    """Compares every image of two sources; both may be the same one.

    Args:
        most_bits: Largest number of bits, of 256, in which near images differ.
        progress: Called with the images decoded so far and in all.
    """
    numbers: dict[bytes, int] = {}  # of distinct images, by their SHA-256
    different: list[ImageRef] = []
    in_first, in_second = (list(_placed(indexes, numbers, different)) for indexes in (first, second))
    prints, faults = _prints(different, workers, progress)
    classes, near, is_complete = _classes(prints, faults, most_bits)
    found = Overlap(_side(first, in_first, faults), _side(second, in_second, faults), is_complete=is_complete)
    found.first.pairs = list(_within(in_first, classes, near))
    found.second.pairs = list(_within(in_second, classes, near))
    across = list(_across(in_first, in_second, classes, near))
    found.across = [pair for _, pair in across]
    found.samples = len({sample for sample, _ in across})
    return found


def _placed(indexes: Sequence[Index], numbers: dict[bytes, int], different: list[ImageRef]) -> Iterator[_Placed]:
    """Yields every image of every sample, and adds those met for the first time to `different`."""
    samples = IndexedSamples(indexes)
    for position in range(len(samples)):
        sample = samples.sample(position)
        images = refs(sample)
        for place, image in enumerate(images):
            if (number := numbers.setdefault(image.sha256, len(different))) == len(different):
                different.append(image)
            yield _Placed(f"{sample.key}, image {place}" if len(images) > 1 else sample.key, position, number)


def _side(indexes: Sequence[Index], placed: Sequence[_Placed], faults: dict[int, str]) -> Side:
    images = {one.image for one in placed}
    reasons = Counter(faults[image] for image in images if image in faults)
    return Side(sum(map(len, indexes)), len(placed), len(images), reasons)


def _prints(
    images: Sequence[ImageRef], workers: int, progress: Callable[[int, int], None]
) -> tuple[np.ndarray, dict[int, str]]:
    """Returns a `PRINT` of each image, and the reasons of those that have none, by number."""
    prints, faults, done = np.zeros(len(images), PRINT), dict[int, str](), 0
    numbered = list(enumerate(images))
    bunches = [numbered[start : start + BUNCH] for start in range(0, len(numbered), BUNCH)]
    for bunch, found in in_processes(_prints_of, bunches, workers if len(bunches) > 1 else 1):
        for (number, _), one in zip(bunch, found, strict=True):
            if isinstance(one, Fault):
                faults[number] = one.reason
            else:
                prints[number] = one
        done += len(bunch)
        progress(done, len(images))
    return prints, faults


def _prints_of(bunch: Bunch) -> list[Any]:
    return [_print_of(image) for _, image in bunch]


def _print_of(image: ImageRef) -> np.void | Fault:
    try:
        return print_of(decode_image(read_image(image), name=""))
    except ImageError as error:
        return Fault(error.reason)
    except DataError:
        return Fault("unreadable")


def _classes(
    prints: np.ndarray, faults: dict[int, str], most_bits: int
) -> tuple[list[int], dict[int, dict[int, int]], bool]:
    """Returns the class of each image, the near classes of each with their distances, and True if all were found.

    An image without a print is a class of its own.
    """
    usable = np.array([number for number in range(len(prints)) if number not in faults], np.int64)
    kinds, kind_of = np.unique(prints[usable], return_inverse=True)
    classes = dict(zip(usable.tolist(), kind_of.reshape(-1).tolist(), strict=True))
    for number in faults:
        classes[number] = len(kinds) + number
    found = near_pairs(kinds, most_bits)
    near: dict[int, dict[int, int]] = {}
    for (one, other), distance in zip(found.pairs.tolist(), found.distances.tolist(), strict=True):
        near.setdefault(one, {})[other] = near.setdefault(other, {})[one] = distance
    return [classes[number] for number in range(len(prints))], near, found.is_complete


def _within(placed: Sequence[_Placed], classes: Sequence[int], near: dict[int, dict[int, int]]) -> Iterator[Pair]:
    first_of_image: dict[int, str] = {}
    first_of_class: dict[int, str] = {}
    for name, _, image in placed:
        kind = classes[image]
        if image in first_of_image:
            yield Pair(first_of_image[image], name, 0, exact=True)
            continue
        first_of_image[image] = name
        if kind in first_of_class:
            yield Pair(first_of_class[kind], name, 0, exact=False)
            continue
        first_of_class[kind] = name
        for other, distance in near.get(kind, {}).items():
            if other in first_of_class:
                yield Pair(first_of_class[other], name, distance, exact=False)


def _across(
    first: Sequence[_Placed], second: Sequence[_Placed], classes: Sequence[int], near: dict[int, dict[int, int]]
) -> Iterator[tuple[int, Pair]]:
    """Yields a pair, and the sample's number, for each image of the second source that is in the first."""
    of_image: dict[int, str] = {}
    of_class: dict[int, str] = {}
    for name, _, image in first:
        of_image.setdefault(image, name)
        of_class.setdefault(classes[image], name)
    for name, sample, image in second:
        kind = classes[image]
        if image in of_image:
            yield sample, Pair(of_image[image], name, 0, exact=True)
        elif kind in of_class:
            yield sample, Pair(of_class[kind], name, 0, exact=False)
        elif there := [(distance, other) for other, distance in near.get(kind, {}).items() if other in of_class]:
            distance, other = min(there)
            yield sample, Pair(of_class[other], name, distance, exact=False)
