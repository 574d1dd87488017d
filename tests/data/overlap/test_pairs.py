"""Near pairs: all of them, and no others, whatever the prints are like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data.overlap import pairs as finding
from arlow_vl.data.overlap.pairs import COLOUR_DISTANCE, MOST_BITS, near_pairs
from arlow_vl.data.overlap.prints import PRINT


def brute_force(prints: np.ndarray, most_bits: int) -> list[tuple[int, int, int]]:
    """All with all."""
    bits, colours = np.unpackbits(prints["bits"], axis=1), prints["colours"].astype(int)
    found = []
    for one in range(len(prints)):
        differ = (bits[one] != bits[one + 1 :]).sum(axis=1)
        apart = np.abs(colours[one] - colours[one + 1 :]).max(axis=1)
        places = np.flatnonzero((differ <= most_bits) & (apart <= COLOUR_DISTANCE))
        found += [(one, one + 1 + place, int(differ[place])) for place in places.tolist()]
    return found


def random_prints(seed: int, number: int, density: float, colours: int) -> np.ndarray:
    """Prints of which half are another one's with some bits and colours changed, up to the border of what is near."""
    dice = np.random.default_rng(seed)
    bits = dice.random((number, 256)) < density
    tones = dice.integers(0, colours, (number, 48)) * (255 // colours)
    for copy in range(max(1, number // 2), number):
        of = int(dice.integers(0, copy))
        bits[copy] = bits[of]
        bits[copy, dice.choice(256, int(dice.integers(0, MOST_BITS + 3)), replace=False)] ^= True
        tones[copy] = tones[of] + dice.integers(-COLOUR_DISTANCE - 1, COLOUR_DISTANCE + 2, 48) * (dice.random(48) < 0.3)
    prints = np.zeros(number, PRINT)
    prints["bits"], prints["colours"] = np.packbits(bits, axis=1), tones.clip(0, 255)
    return prints


@given(
    st.integers(0, 10**6),
    st.integers(0, 150),
    st.sampled_from([0.0, 0.03, 0.16, 0.2, 0.5]),
    st.sampled_from([1, 2, 6]),
    st.sampled_from([0, 5, MOST_BITS]),
)
@settings(max_examples=25)
def test_near_pairs_are_those_of_comparing_all_with_all(seed, number, density, colours, most_bits):
    prints = random_prints(seed, number, density, colours)
    small, finding.SMALL = finding.SMALL, 16  # so that parts are parted
    try:
        found = near_pairs(prints, most_bits)
    finally:
        finding.SMALL = small
    triples = [(*pair, distance) for pair, distance in zip(found.pairs.tolist(), found.distances.tolist(), strict=True)]
    assert triples == brute_force(prints, most_bits)
    assert found.is_complete


def test_fourteen_bits_in_fourteen_bands_are_found():
    prints = np.zeros(2, PRINT)
    bits = np.zeros((2, 256), bool)
    bits[:, ::3] = True
    bits[1, :14] ^= True  # bits 0 to 13 are in bands 0 to 13
    prints["bits"] = np.packbits(bits, axis=1)
    assert near_pairs(prints).distances.tolist() == [14]


def test_more_pairs_than_the_limit_are_told(monkeypatch):
    monkeypatch.setattr(finding, "MOST_PAIRS", 100)
    for density in (0.0, 0.5):
        prints = np.repeat(random_prints(0, 1, density, 1), 300)
        found = near_pairs(prints)
        assert (len(found.pairs), found.is_complete) == (100, False)


@pytest.mark.parametrize(("density", "share"), [(0.03, 0.3), (0.3, 0.02)])
def test_the_work_is_far_less_than_all_with_all(density, share, monkeypatch):
    compared = 0
    near, in_part = finding._near, finding._in_part

    def counting(prints, first, second, most_bits):
        nonlocal compared
        compared += len(first)
        return near(prints, first, second, most_bits)

    def counting_part(prints, part):
        nonlocal compared
        compared += len(part) ** 2 // 2
        return in_part(prints, part)

    monkeypatch.setattr(finding, "_near", counting)
    monkeypatch.setattr(finding, "_in_part", counting_part)
    near_pairs(random_prints(0, 6000, density, 6))
    assert compared < share * 6000**2 / 2
