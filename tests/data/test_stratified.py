"""Some of many places: all over the data, and at every place of its period."""

from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.data.stratified import stratified_places


@given(st.integers(0, 300), st.integers(1, 300))
def test_each_equal_part_gives_one_place(count, wanted):
    places = stratified_places(count, wanted)
    bounds = [part * count // len(places) for part in range(len(places) + 1)] if places else []
    assert len(places) == min(count, wanted)
    assert all(low <= place < high for place, low, high in zip(places, bounds, bounds[1:], strict=False))


def test_a_period_of_the_data_is_not_met():
    """Of POPE's six questions an image, the first three are answered by yes: every sixth would be the same one."""
    for wanted in (50, 100, 250, 500):
        shares = [sum(place % 6 == one for place in stratified_places(3000, wanted)) / wanted for one in range(6)]
        assert all(0.05 < share < 0.35 for share in shares)
        assert 0.35 < sum(shares[:3]) < 0.65


def test_the_places_are_the_same_everywhere():
    assert stratified_places(3000, 5) == [506, 1054, 1452, 1955, 2706]
