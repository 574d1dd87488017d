"""The order of an epoch: every sample once, well mixed, in long reads, the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data import order
from arlow_vl.data.order import BLOCK, BUFFER, _round_keys, bijection, shuffled_order

SIZE = 5 * BUFFER + 3 * BLOCK + 77


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**31))
def test_a_bijection_has_every_number_once(size, seed):
    assert sorted(bijection(_round_keys(seed), size, np.arange(size))) == list(range(size))


@settings(max_examples=60)
@given(data=st.data(), size=st.integers(1, 300), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_has_every_sample_once_whatever_the_sizes_of_blocks_and_buffers(data, size, seed, epoch):
    block = data.draw(st.integers(1, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK", block)
        patch.setattr(order, "BUFFER", block * data.draw(st.integers(1, 5)))
        whole = shuffled_order(seed, "s", epoch, size)
        assert sorted(whole) == list(range(size))
        places = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), dtype=np.int64)
        assert (shuffled_order(seed, "s", epoch, size, places) == whole[places]).all()


@pytest.fixture(scope="module")
def epochs() -> list[np.ndarray]:
    return [shuffled_order(1, "s", epoch, SIZE) for epoch in range(8)]


def test_a_large_epoch_has_every_sample_once(epochs):
    assert (np.sort(epochs[0]) == np.arange(SIZE)).all()


def test_a_sample_may_come_at_any_time_of_an_epoch(epochs):
    # Displacements of uniform places: each eighth of the epoch gets an eighth of what lay in each eighth. A block moves
    # as one, so the deviation is that of 328 blocks thrown into 64 cells, over 8 epochs: 41 a cell.
    eighth = np.arange(SIZE) * 8 // SIZE
    counts = sum(np.histogram2d(eighth, eighth[e], bins=8)[0] for e in epochs) / BLOCK
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 98  # the 99.9% quantile of 63 degrees of freedom, were all cells free


def test_epochs_are_not_correlated(epochs):
    # Of 328 blocks that move as one, a correlation has a standard deviation of 0.055.
    ranks = np.array([np.argsort(e) for e in [np.arange(SIZE), *epochs]])
    assert np.abs(np.corrcoef(ranks) - np.eye(9)).max() < 4 * 0.055


def test_epochs_do_not_put_the_same_samples_into_one_block(epochs):
    of_block = [(e[:BUFFER] // BLOCK * BLOCK) for e in epochs[:2]]
    assert set(of_block[0]) != set(of_block[1])
    # The turn: blocks begin at other samples.
    first = [np.sort(e[:BUFFER])[0] % BLOCK for e in epochs]
    assert len(set(first)) > 4


def test_a_buffer_is_read_from_few_long_runs(epochs):
    for first in range(0, 5 * BUFFER, BUFFER):
        read = np.sort(epochs[0][first : first + BUFFER])
        assert (np.diff(read) > 1).sum() + 1 <= BUFFER // BLOCK + 1  # a block may begin at the end of the data


def test_a_batch_comes_from_many_runs(epochs):
    # 256 uniform draws from 64 blocks touch 62.9 of them.
    blocks = [len(set(epochs[0][first : first + 256] // BLOCK)) for first in range(0, BUFFER, 256)]
    assert np.mean(blocks) > 60


def test_the_order_never_changes_between_versions():
    assert shuffled_order(0, "text", 0, 8).tolist() == [5, 0, 7, 6, 4, 2, 3, 1]
    places = np.array([0, 1, 2, 5 * 10**8, 10**9 - 1])
    assert shuffled_order(0, "text", 3, 10**9, places).tolist() == [
        131770728,
        890066479,
        363053263,
        975421452,
        728695972,
    ]


def test_a_place_far_into_a_large_set_costs_as_little_as_the_first():
    # Memory and time are those of one buffer: 10^12 samples would take 8 TB as a list.
    places = 7 * 10**11 + np.arange(4096)
    assert len(set(shuffled_order(0, "a", 9, 10**12, places).tolist())) == 4096
