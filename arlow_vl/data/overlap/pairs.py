"""Pairs of prints that are near each other, found without comparing all with all. No pair is missed.

Near prints differ in at most `MOST_BITS` of 256 bits and by at most `COLOUR_DISTANCE` in each colour. How they are
found depends on how many bits are set. That number differs by at most `MOST_BITS` too, so both of a near pair are among
the prints with few bits, or both among those with many; some prints are among both.

many bits, as photographs have   The bits are cut into 16 bands. Fourteen different bits lie in at most 14 bands, so two
                                 bands at least are equal: prints are compared that agree in some two bands, which
                                 others hardly do.
few bits, as drawings have       Most bands are empty and equal. The prints are split at a value of a colour instead;
                                 of a near pair both lie on one side, or both in the strip around the border. Each part
                                 is split again until it is small.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, Shaped

from arlow_vl.data.overlap.prints import BITS

MOST_BITS = 14
COLOUR_DISTANCE = 24
"""Levels of 255. Colours of one image, compressed and resized, were up to 20 apart; of different ones 39 or more."""
BANDS = 16
FEW_BITS = 40
SMALL = 256
"""Size of a part that is not split again, and number of prints that are compared with a part at once."""
LOOKED_AT = 512
"""Prints of a part that are looked at to choose its next split."""
COLOURS_TRIED = 6
GAINS = 0.85
"""Largest share of the comparisons that may be left after a split for it to be worth it."""
MOST_PAIRS = 1_000_000

ONES = np.array([number.bit_count() for number in range(256)], np.uint8)
Numbers = Integer[np.ndarray, " _"]
Triples = Integer[np.ndarray, "pairs 3"]
"""Numbers of two prints, the smaller first, and the bits in which they differ."""


class NearPairs(NamedTuple):
    pairs: Integer[np.ndarray, "pairs 2"]
    """Numbers of prints, the smaller first, sorted."""
    distances: Integer[np.ndarray, " pairs"]
    """Bits in which they differ."""
    is_complete: bool
    """False: there were more than `MOST_PAIRS`, and the search ended there."""


def near_pairs(prints: Shaped[np.ndarray, " prints"], most_bits: int = MOST_BITS) -> NearPairs:
    """Returns all pairs of prints that differ in at most so many bits, and little in every colour."""
    assert 0 <= most_bits <= MOST_BITS
    ones = ONES[prints["bits"]].sum(axis=1, dtype=np.int64)
    few, many = np.flatnonzero(ones <= FEW_BITS + MOST_BITS), np.flatnonzero(ones > FEW_BITS)
    found: Triples = np.zeros((0, 3), np.int64)
    waiting: list[Triples] = []
    for candidates in (_of_bands(prints, many), _of_parts(prints, few)):
        for first, second in candidates:
            waiting.append(_near(prints, first, second, most_bits))
            if sum(map(len, waiting)) > MOST_PAIRS:  # a pair may be found many times
                found, waiting = np.unique(np.concatenate([found, *waiting]), axis=0), []
            if len(found) > MOST_PAIRS:
                return NearPairs(found[:MOST_PAIRS, :2], found[:MOST_PAIRS, 2], is_complete=False)
    found = np.unique(np.concatenate([found, *waiting]), axis=0)
    kept = found[:MOST_PAIRS]
    return NearPairs(kept[:, :2], kept[:, 2], is_complete=len(kept) == len(found))


def _near(prints: Shaped[np.ndarray, " prints"], first: Numbers, second: Numbers, most_bits: int) -> Triples:
    """Returns the candidates that are near."""
    bits = ONES[prints["bits"][first] ^ prints["bits"][second]].sum(axis=1, dtype=np.int64)
    fits = bits <= most_bits
    first, second, bits = first[fits], second[fits], bits[fits]
    colours = prints["colours"]
    apart = np.abs(colours[first].astype(np.int16) - colours[second].astype(np.int16)).max(axis=1, initial=0)
    fits = apart <= COLOUR_DISTANCE
    first, second = np.minimum(first, second), np.maximum(first, second)
    return np.stack([first, second, bits], axis=1)[fits]


def _of_bands(prints: Shaped[np.ndarray, " prints"], numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Yields pairs that agree in two bands. A band has bits of the whole image, so that an even corner fills none."""
    spread = np.unpackbits(prints["bits"][numbers], axis=1).reshape(-1, BITS // BANDS, BANDS)
    weights = (1 << np.arange(BITS // BANDS)).astype(np.uint32)
    bands = np.einsum("nbk,b->nk", spread, weights, dtype=np.uint32)  # band k has bits k, k + 16, k + 32, ...
    for one, other in combinations(range(BANDS), 2):
        keys = bands[:, one] << np.uint32(16) | bands[:, other]
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], np.arange(len(order))
        for distance in range(1, len(order)):
            places = places[: np.searchsorted(places, len(order) - distance)]
            places = places[keys[places] == keys[places + distance]]
            if not len(places):
                break
            yield numbers[order[places]], numbers[order[places + distance]]


def _of_parts(prints: Shaped[np.ndarray, " prints"], numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Yields pairs that lie in one part and differ in at most `MOST_BITS` bits."""
    waiting = [numbers]
    while waiting:
        part = waiting.pop()
        halves = _split(prints["colours"], part) if len(part) > SMALL else None
        if halves is None:
            yield from _in_part(prints, part)
        else:
            waiting += halves


def _split(colours: Shaped[np.ndarray, "prints colours"], part: Numbers) -> list[Numbers] | None:
    """Returns both sides and the strip of the split that leaves least to compare; None: no split saves much."""
    some = colours[part[:: -(-len(part) // LOOKED_AT)]].astype(np.int16)
    best, chosen = GAINS, None
    for colour in np.argsort(-some.std(axis=0))[:COLOURS_TRIED].tolist():
        for border in {int(np.median(some[:, colour])), int(some[:, colour].mean())}:
            left = sum(float(side.mean()) ** 2 for side in _sides(some[:, colour], border))
            if left < best:
                best, chosen = left, (colour, border)
    if chosen is None:
        return None
    sides = [part[side] for side in _sides(colours[part, chosen[0]].astype(np.int16), chosen[1])]
    return sides if max(map(len, sides)) < len(part) else None


def _sides(values: Integer[np.ndarray, " values"], border: int) -> tuple[Bool[np.ndarray, " values"], ...]:
    return values <= border, values > border, np.abs(values - border) <= COLOUR_DISTANCE


def _in_part(prints: Shaped[np.ndarray, " prints"], part: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Yields all pairs of a part that agree in enough bits, by products of matrices of ones and minus ones."""
    signs = np.unpackbits(prints["bits"][part], axis=1).astype(np.float32) * 2 - 1
    for start in range(0, len(part), SMALL):
        agree = signs[start : start + SMALL] @ signs[start:].T  # 256 - 2 * the bits in which they differ
        first, second = np.nonzero(np.triu(agree >= BITS - 2 * MOST_BITS, k=1))
        yield part[start + first], part[start + second]
