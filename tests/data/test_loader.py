"""The stream of batches: a pure function of seed, sources and position."""

import json
from collections import Counter

import pytest

from arlow_vl.data.bad_items import TextError
from arlow_vl.data.loader import ResumableLoader
from arlow_vl.data.order import shuffled_order
from arlow_vl.data.sequential import SequentialLoader
from arlow_vl.data.sources import Source
from arlow_vl.errors import DataError


class Numbers:
    def __init__(self, size: int, first: int = 0):
        self.size, self.first, self.fingerprint = size, first, f"{first}+{size}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return self.first + index

    def key(self, index: int) -> str:
        return str(self.first + index)


def loader(*, seed=1, sizes=(7, 10), shares=(2, 1), num_batches=20) -> ResumableLoader:
    sources = [
        Source(name=f"s{i}", dataset=Numbers(size, 100 * i), samples_per_batch=share)
        for i, (size, share) in enumerate(zip(sizes, shares, strict=True))
    ]
    return ResumableLoader(sources, lambda items: {"items": items}, seed=seed, num_batches=num_batches)


def items(batches) -> list[list[int]]:
    return [batch["items"] for batch in batches]


def test_each_epoch_of_a_source_has_every_sample_once():
    stream = [n for batch in items(loader(sizes=(6,), shares=(4,), num_batches=6)) for n in batch]
    for epoch in range(4):
        assert sorted(stream[6 * epoch : 6 * epoch + 6]) == list(range(6))
    assert stream[:6] != stream[6:12]


def test_every_batch_takes_its_share_of_each_source():
    for batch in items(loader()):
        assert Counter(n // 100 for n in batch) == {0: 2, 1: 1}


def test_keys_name_source_and_sample():
    batch = next(iter(loader()))
    assert batch["keys"] == [f"s{n // 100}:{n}" for n in batch["items"]]


@pytest.mark.parametrize("position", [0, 1, 7, 19, 20])
def test_a_loader_with_the_state_of_another_goes_on_like_it(position):
    whole = items(loader())
    first = loader()
    stream = iter(first)
    for _ in range(position):
        next(stream)
    second = loader()
    second.load_state_dict(first.state_dict())
    assert items(second) == whole[position:]


def test_the_order_depends_on_the_seed():
    assert items(loader(seed=1)) != items(loader(seed=2))


def test_the_order_is_the_same_in_another_process(fresh_program):
    """Of another seed of Python's hashes."""
    assert json.loads(fresh_program["out"])["order"] == shuffled_order(3, "a", 1, 50).tolist()


def test_the_order_never_changes_between_versions():
    assert shuffled_order(0, "text", 0, 8).tolist() == [5, 0, 7, 6, 4, 2, 3, 1]


@pytest.mark.parametrize("changed", [{"seed": 2}, {"sizes": (8, 10)}, {"shares": (1, 1)}])
def test_a_state_of_another_stream_is_refused(changed):
    with pytest.raises(ValueError, match="other training data, another seed or another samples_per_batch"):
        loader(**changed).load_state_dict(loader().state_dict())


@pytest.mark.parametrize("position", [-1, 21, "3", None])
def test_a_senseless_position_is_refused(position):
    fresh = loader()
    with pytest.raises(ValueError, match="position is"):
        fresh.load_state_dict({**fresh.state_dict(), "position": position})


def test_sources_of_one_name_are_refused():
    source = Source(name="a", dataset=Numbers(3), samples_per_batch=1)
    with pytest.raises(ValueError, match="different names"):
        ResumableLoader([source, source], dict, seed=0, num_batches=1)
    with pytest.raises(ValueError, match="different names"):
        SequentialLoader([source, source], dict)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="source a has no samples"):
        Source(name="a", dataset=Numbers(0), samples_per_batch=1)


def test_validation_reads_each_source_once_in_order():
    sources = [
        Source(name="a", dataset=Numbers(5), samples_per_batch=2),
        Source(name="b", dataset=Numbers(2, 100), samples_per_batch=4),
    ]
    validation = SequentialLoader(sources, lambda items: {"items": items})
    for _ in range(2):
        batches = list(validation)
        assert items(batches) == [[0, 1], [2, 3], [4], [100, 101]]
        assert [batch["source"] for batch in batches] == ["a", "a", "a", "b"]
    assert len(validation) == 4


def test_validation_stops_at_max_samples_of_each_source():
    sources = [Source(name="a", dataset=Numbers(5), samples_per_batch=2)]
    validation = SequentialLoader(sources, lambda items: {"items": items}, max_samples=3)
    assert items(validation) == [[1, 2], [4]]  # a draw, in the order of the data
    assert len(validation) == 2


class Spoilt(Numbers):
    """Of which some cannot be used."""

    bad: tuple[int, ...] = ()

    def __getitem__(self, index: int) -> int:
        if index in self.bad:
            raise TextError(self.key(index), "text_without_room", "it has no text")
        return super().__getitem__(index)


def validated(bad: tuple[int, ...], *, max_samples: int | None, ranks: int) -> list[list[str]]:
    """The keys that each rank reads of 20 numbers."""
    numbers = Spoilt(20)
    numbers.bad = bad
    source = Source(name="a", dataset=numbers, samples_per_batch=1, max_bad_texts=20)
    loaders = [
        SequentialLoader([source], lambda items: {"items": items}, max_samples=max_samples, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    return [[key for batch in loader for key in batch["keys"]] for loader in loaders]


@pytest.mark.parametrize("max_samples", [1, 3, 19])
def test_others_stand_in_where_nothing_drawn_can_be_used_alike_on_any_number_of_ranks(max_samples):
    drawn = tuple(shuffled_order(0, "a", 0, 20)[:max_samples].tolist())
    (alone,) = validated(drawn, max_samples=max_samples, ranks=1)
    assert len(set(alone)) == len(alone) == min(max_samples, 20 - max_samples)
    assert not {f"a:{number}" for number in drawn} & set(alone)
    shared = validated(drawn, max_samples=max_samples, ranks=3)
    assert sorted(key for keys in shared for key in keys) == sorted(alone)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_source_without_a_usable_sample_is_named_on_any_number_of_ranks(ranks):
    with pytest.raises(DataError, match="source a: no sample can be used"):
        validated(tuple(range(20)), max_samples=None, ranks=ranks)
