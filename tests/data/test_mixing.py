"""Shares of sources: kept by every prefix, by samples and by tokens, under schedules and over resumes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.data.mixing import ONE, Draws, Mixture, integer_shares, scheduled, weights_by_size

weights_of_sources = st.lists(st.floats(0.001, 1000), min_size=1, max_size=8)


@given(weights_of_sources)
def test_shares_add_up_to_the_whole(weights):
    shares = integer_shares(weights)
    assert sum(shares) == ONE
    assert all(share >= 0 for share in shares)


@given(weights_of_sources)
def test_every_prefix_is_within_one_sample_of_each_share(weights):
    shares, draws = integer_shares(weights), Draws.none(len(weights))
    for count in range(1, 150):
        draws.draw(draws.next_source(shares, [1] * len(weights)), shares, 1)
        assert sum(draws.drawn) == count
        for drawn, share in zip(draws.drawn, shares, strict=True):
            assert abs(drawn - count * share / ONE) <= 1


@given(weights_of_sources, st.randoms(use_true_random=False))
def test_by_tokens_every_prefix_is_within_the_longest_sample_of_each_share(weights, random):
    sources = range(len(weights))
    shares, draws, tokens = integer_shares(weights), Draws.none(len(weights)), [0 for _ in sources]
    costs = [random.randint(1, 50) for _ in sources]
    for _ in range(120):
        source = draws.next_source(shares, costs)
        draws.draw(source, shares, costs[source])
        tokens[source] += costs[source]
        costs[source] = random.randint(1, 50)
        for i in sources:
            assert abs(tokens[i] - sum(tokens) * shares[i] / ONE) <= 50


@given(st.lists(st.tuples(weights_of_sources.map(lambda some: (some * 4)[:4]), st.integers(1, 60)), max_size=6))
def test_weights_that_change_cost_no_source_more_than_two_samples(stages):
    draws, due = Draws.none(4), [0.0] * 4
    for weights, count in stages:
        shares = integer_shares(weights)
        for _ in range(count):
            draws.draw(draws.next_source(shares, [1] * 4), shares, 1)
            due = [d + share / ONE for d, share in zip(due, shares, strict=True)]
            assert all(abs(drawn - d) <= 2 for drawn, d in zip(draws.drawn, due, strict=True))


def test_a_source_without_weight_is_never_drawn_also_when_much_is_due_to_it():
    draws = Draws([0, 0, 0], [5 * ONE, -2 * ONE, -3 * ONE])
    shares = integer_shares([0, 1, 1])
    for _ in range(20):
        draws.draw(draws.next_source(shares, [1, 1, 1]), shares, 1)
    assert draws.drawn[0] == 0


def test_one_to_two_is_a_pattern_of_three():
    shares, draws = integer_shares([1, 2]), Draws.none(2)
    drawn = []
    for _ in range(6):
        drawn.append(draws.next_source(shares, [1, 1]))
        draws.draw(drawn[-1], shares, 1)
    assert drawn == [1, 0, 1, 1, 0, 1]


def test_a_schedule_changes_weights_linearly_between_its_steps():
    mixture = Mixture(weights={100: {"a": 1, "b": 0}, 300: {"a": 0, "b": 1}})
    assert [mixture.at(step)["b"] for step in (0, 100, 200, 250, 300, 900)] == [0, 0, 0.5, 0.75, 1, 1]
    assert Mixture(weights={"a": 3, "b": 1}).at(7) == {"a": 3, "b": 1}


def test_a_temperature_lifts_small_sources():
    sizes = {"large": 900, "small": 100}
    assert weights_by_size(sizes) == sizes
    assert weights_by_size(sizes, temperature=2) == pytest.approx({"large": 30, "small": 10})
    assert weights_by_size(sizes, temperature=1e9) == pytest.approx({"large": 1, "small": 1})
    with pytest.raises(ValueError, match="temperature must be over 0, got 0"):
        weights_by_size(sizes, temperature=0)


def test_weights_by_step_are_joined_over_the_sources():
    weights = {"a": {0: 1.0, 100: 3.0}, "b": {50: 2.0}, "c": 4.0}
    assert scheduled(weights) == {
        0: {"a": 1.0, "b": 2.0, "c": 4.0},
        50: {"a": 2.0, "b": 2.0, "c": 4.0},
        100: {"a": 3.0, "b": 2.0, "c": 4.0},
    }
    assert scheduled({"a": 1.0, "c": 4.0}) == {"a": 1.0, "c": 4.0}


def test_shares_are_told_at_each_step_that_has_weights():
    assert Mixture(weights={"a": 3, "b": 1e-6}, by="tokens").describe() == "shares of tokens: a 100%, b 3.33e-05%"
    mixture = Mixture(weights={0: {"a": 1, "b": 0}, 1000: {"a": 1, "b": 2}})
    assert mixture.describe() == "shares of samples: step 0 a 100%, b 0%; step 1,000 a 33.3%, b 66.7%"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"weights": {}}, "weights is empty; give each source its weight"),
        ({"weights": {"a": -1}}, "the weight of a must be a number from 0 on, got -1"),
        ({"weights": {"a": float("nan")}}, "the weight of a must be a number from 0 on, got nan"),
        ({"weights": {"a": 0, "b": 0}}, "no source has a weight over 0"),
        ({"weights": {0: {"a": 1}, 5: {"b": 1}}}, "every step names the same sources"),
        ({"weights": {0: {"a": 1}, 5: 2}}, "either names to numbers, or steps to such weights, not both"),
        ({"weights": {"a": 1}, "epochs": {"b": 1}}, "epochs of b must be a number over 0 for a source that has"),
        ({"weights": {"a": 1}, "epochs": {"a": 0}}, "epochs of a must be a number over 0"),
    ],
)
def test_a_senseless_mixture_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mixture(**fields)
