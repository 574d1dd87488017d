"""Rows of a token budget and an image budget: nothing lost, nothing over, little left empty, resumed anywhere."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data.mixing import Mixture
from arlow_vl.data.rows import RowBudget, Windows, WindowState, best_fit, indices, pack_rows
from arlow_vl.errors import DataError

samples = st.lists(
    st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=6).map(tuple), st.integers(0, 5)), max_size=60
)
budgets = st.builds(
    RowBudget, tokens=st.integers(1, 60), images=st.integers(0, 6), too_long=st.sampled_from(["cut", "leave_out"])
)


@settings(max_examples=50)
@given(samples, budgets)
def test_every_text_is_in_exactly_one_row_or_counted_and_no_row_is_over_its_budget(lengths, budget):
    rows, counts = pack_rows(lengths, budget)
    for row in rows:
        assert row
        assert sum(piece.tokens for piece in row) <= budget.tokens
        assert sum(piece.images for piece in row) <= budget.images
    packed = Counter((piece.sample, text) for row in rows for piece in row for text in piece.texts)
    texts = Counter()
    left_out = cut = 0
    for sample, (tokens, images) in enumerate(lengths):
        if images > budget.images:
            continue
        long = [text for text, count in enumerate(tokens) if count > budget.tokens]
        left_out, cut = left_out + len(long), cut + len(long)
        texts.update((sample, t) for t in range(len(tokens)) if budget.too_long == "cut" or t not in long)
    assert packed == texts
    assert counts["images_left_out"] == sum(images > budget.images for _, images in lengths)
    assert counts["texts_cut"] == (cut if budget.too_long == "cut" else 0)
    assert counts["texts_left_out"] == (left_out if budget.too_long == "leave_out" else 0)
    for piece in itertools.chain.from_iterable(rows):
        tokens, images = lengths[piece.sample]
        assert piece.images == images
        assert piece.tokens == sum(min(tokens[text], budget.tokens) for text in piece.texts)


@settings(max_examples=50)
@given(samples, budgets)
def test_the_texts_of_a_sample_stay_together_where_a_row_has_room_for_them(lengths, budget):
    rows, _ = pack_rows(lengths, budget)
    times = Counter(piece.sample for row in rows for piece in row)
    for sample, (tokens, _) in enumerate(lengths):
        if sum(tokens) <= budget.tokens:
            assert times[sample] <= 1


def test_ten_questions_that_need_three_rows_take_the_image_into_each():
    rows, _ = pack_rows([((4,) * 10, 1)], RowBudget(tokens=16, images=1))
    pieces = [piece for row in rows for piece in row]
    assert [len(piece.texts) for piece in pieces] == [4, 4, 2]
    assert all(piece.images == 1 for piece in pieces)


def test_an_item_goes_where_it_leaves_least_room():
    assert best_fit([3, 6, 4, 5], 10) == [[1, 2], [3, 0]]


class Lengths:
    """Samples that are nothing but their lengths."""

    def __init__(self, lengths) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def length(self, index: int):
        return self.lengths[index]


def log_normal(median: float, count: int = 20000, *, spread: float = 1.0, most: int = 2048) -> list[int]:
    random = np.random.default_rng(0)
    return np.clip(random.lognormal(np.log(median), spread, count), 4, most).astype(int).tolist()


def windows(*datasets, budget, weights=None, seed=0, rows_per_step=8, **mixture) -> Windows:
    names = [f"s{number}" for number in range(len(datasets))]
    weights = weights or dict.fromkeys(names, 1)
    return Windows(names, datasets, budget, Mixture(weights=weights, **mixture), seed=seed, rows_per_step=rows_per_step)


def fill(made: Windows, count: int, *, of: str = "tokens") -> float:
    rows = [row for row, _ in itertools.islice(made.rows(made.first_state()), count)]
    return sum(getattr(take, of) for row in rows for take in row) / (len(rows) * getattr(made.budget, of))


@pytest.mark.parametrize(("median", "tokens"), [(60, 1024), (60, 2048), (300, 2048), (300, 8192)])
def test_text_of_log_normal_length_fills_rows_to_97_percent(median, tokens, capsys):
    made = windows(Lengths([(n, 0) for n in log_normal(median)]), budget=RowBudget(tokens=tokens))
    filled = fill(made, 260)
    with capsys.disabled():
        print(f" [median {median}, rows of {tokens}: {filled:.1%}]", end="")
    assert filled >= 0.97


@pytest.mark.parametrize(("images", "scarce"), [(32, "tokens"), (16, "images"), (18, "both")])
def test_images_with_text_fill_the_scarcer_budget_to_95_percent(images, scarce, capsys):
    random = np.random.default_rng(1)
    captions = Lengths([(n, 1) for n in log_normal(60, 6000, spread=0.5)])
    chats = Lengths([(n, int(random.integers(1, 7))) for n in log_normal(350, 6000, spread=0.6)])
    questions = Lengths([(tuple(random.integers(12, 30, size=10).tolist()), 1) for _ in range(6000)])
    weights = {"s0": {"tokens": 2, "images": 8, "both": 4}[scarce], "s1": 1, "s2": 1}
    budget = RowBudget(tokens=2048, images=images)
    filled = fill(
        windows(captions, chats, questions, budget=budget, weights=weights),
        260,
        of="tokens" if scarce == "tokens" else "images",
    )
    with capsys.disabled():
        print(f" [rows of 2048 tokens and {images} images, {scarce}: {filled:.1%}]", end="")
    assert filled >= 0.95


mixed = [Lengths([(n, 0) for n in log_normal(20, 50)]), Lengths([(n, 1) for n in log_normal(9, 70)])]


def stream(made: Windows, state: WindowState, count: int):
    return list(itertools.islice(made.rows(state), count))


@pytest.mark.parametrize("by", ["samples", "tokens"])
def test_rows_from_any_state_on_are_those_of_the_whole_stream(by, monkeypatch):
    monkeypatch.setattr("arlow_vl.data.rows.WINDOW_ROWS", 8)
    made = windows(*mixed, budget=RowBudget(tokens=64, images=4), by=by)
    whole = stream(made, made.first_state(), 60)
    for position in range(61):
        state = whole[position - 1][1] if position else made.first_state()
        state = made.resume(json.loads(json.dumps(state.plain())))
        assert stream(made, state, min(12, 60 - position)) == whole[position : position + 12]


def test_a_state_is_small_wherever_it_is():
    made = windows(*mixed, budget=RowBudget(tokens=64, images=4))
    assert max(len(json.dumps(state.plain())) for _, state in stream(made, made.first_state(), 400)) < 400


def test_shares_hold_by_tokens_over_rows():
    made = windows(*mixed, budget=RowBudget(tokens=256, images=8), weights={"s0": 3, "s1": 1}, by="tokens")
    tokens = Counter()
    for row, _ in stream(made, made.first_state(), 300):
        for take in row:
            tokens[take.source] += take.tokens
    assert tokens[0] / tokens.total() == pytest.approx(0.75, abs=0.01)


def test_a_schedule_moves_the_shares():
    made = windows(
        *mixed, budget=RowBudget(tokens=64, images=4), weights={0: {"s0": 1, "s1": 0}, 40: {"s0": 0, "s1": 1}}
    )
    sources = [take.source for row, _ in stream(made, made.first_state(), 800) for take in row]
    assert set(sources[:50]) == {0}
    assert set(sources[-50:]) == {1}


def test_new_weights_hold_from_the_next_window_on_and_lose_nothing(monkeypatch):
    monkeypatch.setattr("arlow_vl.data.rows.WINDOW_ROWS", 8)
    old, new = (
        windows(*mixed, budget=RowBudget(tokens=64, images=4), weights=w)
        for w in ({"s0": 1, "s1": 1}, {"s0": 1, "s1": 0})
    )
    for position in (0, 1, 5, 20):
        before = stream(old, old.first_state(), position)
        state = before[-1][1] if before else old.first_state()
        rows = [row for row, _ in before] + [row for row, _ in stream(new, new.resume(state.plain()), 60)]
        for source in (0, 1):
            numbers = sorted(take.number for row in rows for take in row if take.source == source)
            assert len(set(numbers)) == len(numbers)
            if source == 1:
                assert numbers == list(range(len(numbers)))
        assert {take.source for row in rows[-20:] for take in row} == {0}


def test_epochs_use_a_source_up_and_the_others_go_on_alone():
    made = windows(*mixed, budget=RowBudget(tokens=64, images=4), epochs={"s1": 2})
    drawn = Counter(take.source for row, _ in stream(made, made.first_state(), 400) for take in row)
    assert drawn[1] == 2 * 70
    made = windows(*mixed, budget=RowBudget(tokens=64, images=4), epochs={"s0": 0.5, "s1": 2})
    numbers = Counter((take.source, take.number) for row, _ in stream(made, made.first_state(), 400) for take in row)
    assert numbers == Counter([(0, n) for n in range(25)] + [(1, n) for n in range(140)])


def test_what_does_not_fit_is_counted_in_the_state():
    made = windows(Lengths([(100, 0), (5, 9), (8, 0)]), budget=RowBudget(tokens=64, images=4), epochs={"s0": 1})
    counts = dict(stream(made, made.first_state(), 99)[-1][1].counts)
    assert counts == {"s0: texts_cut": 1, "s0: images_left_out": 1}


def test_what_does_not_fit_is_told_by_source_as_soon_as_it_is_seen(capsys):
    made = windows(Lengths([(5, 9), (8, 0)]), Lengths([(100, 0)] * 3), budget=RowBudget(tokens=64, images=4))
    next(made.rows(made.first_state()))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[2].partition(":")[0] for line in lines] == ["s0", "s1"]
    assert "samples have more images than a row takes (packing.row_images) and are left out" in lines[0]
    assert "texts are longer than a row (packing.row_tokens) and are cut" in lines[1]


def test_a_source_of_which_no_sample_fits_is_refused_though_others_do():
    made = windows(Lengths([(8, 0)] * 50), Lengths([(5, 9)] * 20), budget=RowBudget(tokens=64, images=4))
    with pytest.raises(DataError, match=r"source s1: no sample fits into a row of .* and 4 images; raise packing"):
        made.plan(made.first_state())


def test_numbers_of_samples_go_on_over_epochs():
    assert sorted(indices(0, "s", 5, np.arange(5, 10))) == list(range(5))
    assert indices(0, "s", 5, np.arange(3, 12))[2:7] == indices(0, "s", 5, np.arange(5, 10))


def test_data_of_which_nothing_fits_are_refused():
    made = windows(Lengths([(5, 9)] * 3), budget=RowBudget(tokens=64, images=4))
    with pytest.raises(
        DataError, match="source s0: no sample fits into a row of 64 tokens and 4 images; raise packing"
    ):
        next(made.rows(made.first_state()))


def test_sources_without_lengths_and_weights_of_others_are_refused():
    with pytest.raises(ValueError, match="source s0 cannot be packed into rows, its data set tells no lengths"):
        windows([1, 2], budget=RowBudget(tokens=64))
    with pytest.raises(ValueError, match="weights must name the sources and no others; other is in one only"):
        windows(*mixed, budget=RowBudget(tokens=64), weights={"s0": 1, "s1": 1, "other": 1})


def test_a_row_without_tokens_is_refused():
    with pytest.raises(ValueError, match="a row needs tokens of at least 1"):
        RowBudget(tokens=0)
