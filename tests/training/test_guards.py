"""A gradient much longer than the last ones is found; what is not finite blinds nobody; what lasts is let through."""

import math

import torch

from arlow_vl.training.guards import LEARNT_AFTER, MOST_IN_A_ROW, SpikeGuard


def looks(guard: SpikeGuard, *norms: float) -> list[bool]:
    def look(norm: float) -> bool:
        return bool(guard.look(torch.tensor(norm), is_bad=torch.tensor(not math.isfinite(norm))))

    return [look(norm) for norm in norms]


def calm(guard: SpikeGuard) -> SpikeGuard:
    assert not any(looks(guard, *[1.0] * LEARNT_AFTER))
    return guard


def test_a_gradient_many_times_as_long_as_the_last_ones_is_a_spike():
    assert looks(calm(SpikeGuard(5.0)), 4.9, 1.0, 50.0, 1.0) == [False, False, True, False]


def test_without_a_bound_nothing_is():
    assert looks(calm(SpikeGuard(None)), 1e9) == [False]


def test_at_first_nothing_is_as_gradients_are_long_then():
    assert looks(SpikeGuard(2.0), 1.0, 100.0, 3.0) == [False] * 3


def test_what_is_not_finite_is_no_spike_and_goes_into_no_mean():
    guard = calm(SpikeGuard(5.0))
    assert looks(guard, math.nan, math.inf, 6.0, 1.0) == [False, False, True, False]


def test_spikes_do_not_raise_the_mean():
    assert looks(calm(SpikeGuard(5.0)), 1e6, 6.0) == [True, True]


def test_gradients_that_stay_long_are_let_through_after_some():
    found = looks(calm(SpikeGuard(5.0)), *[50.0] * (MOST_IN_A_ROW + 2))
    assert found[: MOST_IN_A_ROW + 1] == [True] * MOST_IN_A_ROW + [False]


def test_gradients_that_stay_long_are_left_out_no_more():
    guard = calm(SpikeGuard(2.0))
    assert sum(looks(guard, *[5.0] * 40)) == MOST_IN_A_ROW
    assert looks(guard, *[50.0] * 2) == [True] * 2  # a gradient that is not long has come between


def test_what_is_not_finite_does_not_end_a_row_of_long_gradients():
    found = looks(calm(SpikeGuard(5.0)), 50.0, 50.0, math.nan, 50.0, math.nan, 50.0, 50.0)
    assert found == [True, True, False, True, False, False, False]


def test_a_guard_goes_on_where_it_was_saved():
    first = calm(SpikeGuard(5.0))
    looks(first, 50.0)
    second = SpikeGuard(5.0)
    second.load_state_dict(first.state_dict())
    norms = [50.0, 50.0, 50.0, 1.0, 7.0]
    assert looks(second, *norms) == looks(first, *norms)
