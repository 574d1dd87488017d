"""Killed and gone on with other numbers of workers and ranks: each optimizer step has the samples it would have had."""

import json
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data.bad_items import BadItems, Fault
from arlow_vl.data.loader import ResumableLoader, merge_states
from arlow_vl.data.mixing import Mixture
from arlow_vl.data.rows import RowBudget
from arlow_vl.data.sources import Source
from arlow_vl.errors import DataError
from experiments.benchmarks.data_resume import BATCHES_PER_STEP, Examples, Life, build, run

STEPS = 8


@pytest.fixture(scope="module")
def whole() -> dict[str, dict]:
    return {mode: run(mode, [Life(0, 1)], steps=STEPS) for mode in ("padded", "packed")}


LAST = STEPS * BATCHES_PER_STEP - 1


@pytest.mark.parametrize(
    ("mode", "lives"),
    [
        ("packed", [Life(0, 1, 0), Life(1, 4)]),
        ("padded", [Life(1, 3, 1), Life(0, 2)]),
        ("packed", [Life(2, 2, 45), Life(3, 1)]),
        ("packed", [Life(4, 1, LAST), Life(0, 3)]),
        ("padded", [Life(0, 4, 40), Life(4, 1, 30), Life(1, 2)]),
        ("packed", [Life(1, 3, 38), Life(0, 4, LAST - 36), Life(2, 1)]),
    ],
)
def test_a_killed_run_goes_on_with_other_workers_and_ranks_as_if_it_had_never_been_killed(whole, mode, lives):
    found = run(mode, lives, steps=STEPS)
    assert found["steps"] == whole[mode]["steps"]
    assert found["bad"] == whole[mode]["bad"]


def test_the_runs_cross_epochs_have_bad_items_and_small_states(whole):
    for mode in whole:
        times = Counter(key for step in whole[mode]["steps"] for key in step)
        assert max(times.values()) > 1
        assert all(bad["first"] for name, bad in whole[mode]["bad"].items() if name != "text")
        assert whole[mode]["state_bytes"] < 2000


@settings(max_examples=8)
@given(st.sampled_from(["padded", "packed"]), st.lists(st.tuples(st.integers(1, 4), st.integers(0, 20)), max_size=4))
def test_any_number_of_ranks_may_go_on_from_any_round_that_leaves_them_equal_shares(mode, lives):
    steps = 3

    def read(loaders, rounds: int) -> Counter:
        streams = [iter(loader) for loader in loaders]
        return Counter(key for _ in range(rounds) for stream in streams for key in next(stream)["keys"])

    def begin(ranks: int, state):
        loaders = [build(mode, workers=0, rank=rank, ranks=ranks, steps=steps) for rank in range(ranks)]
        for loader in loaders if state else ():
            loader.load_state_dict(state)
        return loaders

    seen, state, left = Counter(), None, steps * BATCHES_PER_STEP
    for ranks, rounds in lives:
        if left % ranks:
            continue
        loaders = begin(ranks, state)
        rounds = min(rounds, left // ranks)
        seen += read(loaders, rounds)
        left -= rounds * ranks
        state = json.loads(json.dumps(merge_states([loader.state_dict() for loader in loaders])))
    seen += read(begin(1, state), left)
    assert seen == read(begin(1, None), steps * BATCHES_PER_STEP)


def test_shares_that_are_not_equal_are_refused():
    with pytest.raises(ValueError, match="12 batches cannot be shared by 5 ranks"):
        build("padded", workers=0, rank=0, ranks=5, steps=1)
    state = build("padded", workers=0, rank=0, ranks=1, steps=1).state_dict()
    with pytest.raises(ValueError, match="the 11 batches that are left cannot be shared by 2 ranks"):
        build("padded", workers=0, rank=0, ranks=2, steps=1).load_state_dict({**state, "position": 1})


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("mode", ["padded", "packed"])
def test_the_limit_of_bad_items_ends_every_run_at_the_same_batch(mode, workers):
    loader = build(mode, workers=workers, rank=0, ranks=1, steps=STEPS)
    loader.readers["captions"].max_bad = 1
    read = []
    with pytest.raises(DataError, match=r"cut short \(truncated\); source captions: 2 samples skipped \(truncated 2\)"):
        read.extend(batch["keys"] for batch in loader)
    again = build(mode, workers=0, rank=0, ranks=1, steps=STEPS)
    assert read == [batch["keys"] for batch, _ in zip(again, read, strict=False)]
    assert loader.position == len(read) > 0


def test_counts_of_bad_items_take_little_whatever_happens():
    bad = BadItems("s", max_bad=10**7)
    for number in range(20_000):
        bad.note(Fault("s", 0, "n" * 5000 + str(number), "truncated", "sentence"))
    assert len(json.dumps(bad.state_dict())) < 2000
    assert bad.summary() == "20,000 samples skipped (truncated 20,000)"


def test_every_epoch_has_the_same_limit():
    bad = BadItems("s", max_bad=2)
    for epoch in range(5):
        bad.finish(epoch)
        for number in range(2):
            bad.note(Fault("s", epoch, str(number), "corrupt", "s:0"))
    assert bad.summary() == "2 samples skipped (corrupt 2)"
    with pytest.raises(DataError, match="3 samples skipped"):
        bad.note(Fault("s", 4, "2", "corrupt", "s:2"))


def test_new_weights_are_told_and_held(caplog):
    from dataclasses import replace

    old, new = (build("packed", workers=0, rank=0, ranks=1, steps=STEPS) for _ in range(2))
    stream = iter(old)
    for _ in range(30):
        next(stream)
    weights = {"captions": 0, "chats": 0, "text": 1}
    new = ResumableLoader(
        new.sources,
        new.collate,
        seed=7,
        num_batches=600,
        packing=replace(new.packing, mixture=Mixture(weights=weights, by="tokens")),
    )
    new.load_state_dict(old.state_dict())
    assert f"and are [[0, {weights}]] (from step, weights) after batch 30, once its window ends" in caplog.text
    assert all(key.startswith("text:") for key in list(new)[-1]["keys"])


def with_epochs(num_batches: int, **mixture) -> ResumableLoader:
    """Two batches a step, of three rows each."""
    from arlow_vl.data.loader import Packing

    budget, mixture = RowBudget(tokens=128, images=6), Mixture(**{"weights": {"a": 1, "b": 1}} | mixture)
    packing = Packing(budget=budget, rows_per_batch=3, mixture=mixture, rows_per_step=6)
    sources = [Source(name=name, dataset=Examples(700, images=1)) for name in "ab"]
    return ResumableLoader(sources, lambda rows: {}, seed=0, num_batches=num_batches, packing=packing)


def test_sources_that_would_be_used_up_are_told_before_anything_is_read():
    """The number of steps that is named is the largest there is, also when it is asked for in the middle of a run."""
    few = with_epochs(10_000, epochs={"a": 1, "b": 2})
    with pytest.raises(
        DataError, match=r"after ([\d,]+) of 10,000 batches; lower run.max_steps to (\d+) at most"
    ) as told:
        next(iter(few))
    batches, steps = map(int, re.findall(r"after (\d+) of .* to (\d+) at most", str(told.value))[0])
    assert batches // 2 == steps > 20
    enough = with_epochs(2 * steps, epochs={"a": 1, "b": 2})
    assert len(list(islice(enough, batches - 5))) == enough.position == batches - 5
    longer = with_epochs(2 * steps + 2, epochs={"a": 1, "b": 2})
    longer.load_state_dict(enough.state_dict())
    with pytest.raises(DataError, match=rf"used up after {batches} of {2 * steps + 2} batches; .* to {steps} at most"):
        next(iter(longer))
    rest = with_epochs(2 * steps, epochs={"a": 1, "b": 2})
    rest.load_state_dict(enough.state_dict())
    assert len(list(rest)) == 2 * steps - enough.position


def test_many_samples_are_used_up_when_they_are(monkeypatch):
    monkeypatch.setattr("arlow_vl.data.loader.COUNTED_SAMPLES", 1000)
    many = with_epochs(10_000, epochs={"a": 1, "b": 2})
    with pytest.raises(DataError, match=r"used up after \d+ of 10,000 batches; lower run.max_steps to \d+ at most"):
        for _ in many:
            pass
    assert many.position > 40


@pytest.mark.parametrize("mixture", [{"epochs": {"a": 1}}, {}])
def test_a_source_without_a_number_of_epochs_is_never_used_up(mixture):
    next(iter(with_epochs(10**9, **mixture)))


def test_an_endless_source_that_has_no_weight_does_not_count():
    with pytest.raises(DataError, match="used up after"):
        next(iter(with_epochs(10**9, epochs={"a": 1}, weights={0: {"a": 1, "b": 1}, 99: {"a": 1, "b": 0}})))
