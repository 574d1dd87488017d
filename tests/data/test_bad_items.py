"""What is unusable counts once an epoch, an image by its sample and a text by itself, and is held to the limit, by any
number of ranks."""

from collections.abc import Sequence
from itertools import islice

import pytest

from arlow_vl.data.bad_items import BadItems, Fault, TextError
from arlow_vl.data.loader import ResumableLoader, merge_states
from arlow_vl.data.order import shuffled_order
from arlow_vl.data.sequential import SequentialLoader
from arlow_vl.data.sources import Source
from arlow_vl.errors import DataError
from vision.decoding.image import ImageError

TEXTS = (19, *[1] * 11, 8)
"""Of each sample, every one of them an item."""
ITEMS = [(sample, text) for sample, texts in enumerate(TEXTS) for text in range(texts)]


class Texts:
    """Items of samples of which some have a bad image."""

    fingerprint = "texts"

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return len(ITEMS)

    def __getitem__(self, index: int) -> int:
        if self.sample_of(index) in self.bad:
            raise ImageError(f"s{self.sample_of(index)}", "truncated", "cut")
        return index

    def sample_of(self, index: int) -> int:
        return ITEMS[index][0]

    def key(self, index: int) -> str:
        return "s{}?{}".format(*ITEMS[index])


def source_of(*bad: int, max_bad: int) -> Source:
    return Source(name="a", dataset=Texts(*bad), samples_per_batch=2, max_bad=max_bad)


def training(source: Source, *, num_batches: int = len(ITEMS), **settings) -> ResumableLoader:
    """Of two epochs."""
    return ResumableLoader([source], lambda items: {"items": items}, seed=0, num_batches=num_batches, **settings)


def validation(source: Source, **settings) -> SequentialLoader:
    return SequentialLoader([source], lambda items: {"items": items}, **settings)


@pytest.mark.parametrize("loader_of", [training, validation])
def test_a_bad_image_counts_once_an_epoch_however_many_texts_it_has(loader_of):
    loader = loader_of(source_of(0, 5, 12, max_bad=3))
    read = [item for batch in loader for item in batch["items"]]
    assert {ITEMS[item][0] for item in read} == set(range(13)) - {0, 5, 12}
    assert loader.readers["a"].summary() == "3 samples skipped (truncated 3)"
    with pytest.raises(DataError, match=r"source a: 3 samples skipped \(truncated 3\), the limit is 2 \(max_bad"):
        list(loader_of(source_of(0, 5, 12, max_bad=2)))


def test_a_bad_image_of_which_another_text_is_drawn_counts_in_validation():
    drawn = sorted(shuffled_order(0, "a", 0, len(ITEMS))[:9].tolist())
    met = {ITEMS[index] for index in drawn}
    assert (0, 0) not in met and len([text for sample, text in met if sample == 0]) > 1
    loader = validation(source_of(0, max_bad=1), max_samples=9)
    list(loader)
    assert loader.readers["a"].counts == {1: {"truncated": 1}}


def test_where_none_may_be_bad_a_run_ends_at_the_first_text_that_is_met():
    loader, order = training(source_of(0, max_bad=0)), shuffled_order(0, "a", 0, len(ITEMS)).tolist()
    first = next(place for place, index in enumerate(order) if ITEMS[index][0] == 0)
    assert first // 2 < order.index(0) // 2
    with pytest.raises(DataError, match=r"s0: cut \(truncated\); source a: 1 sample skipped"):
        list(loader)
    assert loader.position == first // 2


def test_images_and_texts_are_limited_and_told_by_themselves():
    bad = BadItems("a", 1, 2)
    for number in range(2):
        bad.note(Fault.of("a", 0, TextError(f"s0?{number}", "text_without_room", "no room")))
    bad.note(Fault.of("a", 0, ImageError("s1", "corrupt", "broken")))
    assert bad.summary() == "1 sample skipped (corrupt 1), 2 texts skipped (text_without_room 2)"
    with pytest.raises(DataError, match=r"source a: 3 texts skipped \(text_without_room 3\), the limit is 2"):
        bad.note(Fault.of("a", 0, TextError("s0?2", "text_without_room", "no room")))


BAD = (0, 2, 3, 5, 7, 8, 10, 12)


def read_and_share(loaders: Sequence[ResumableLoader | SequentialLoader], batches: int | None = None) -> None:
    """In step, as ranks do; each rank hears what all have met."""
    for _ in islice(zip(*loaders, strict=True), batches):
        pass
    states = [loader.readers["a"].state_dict() for loader in loaders]
    for loader in loaders:
        loader.readers["a"].share(states)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("loader_of", [training, validation])
def test_any_number_of_ranks_may_meet_as_many_and_tells_as_many(loader_of, ranks, caplog):
    def loaders_of(max_bad: int) -> list[ResumableLoader | SequentialLoader]:
        more = {"num_batches": 40} if loader_of is training else {}
        source = source_of(*BAD, max_bad=max_bad)
        return [loader_of(source, rank=rank, ranks=ranks, **more) for rank in range(ranks)]

    loaders = loaders_of(8)
    read_and_share(loaders)
    assert {loader.readers["a"].summary() for loader in loaders} == {"8 samples skipped (truncated 8)"}
    assert len(loaders[-1].readers["a"].bad) == 5
    with pytest.raises(DataError, match=r"source a: 8 samples skipped \(truncated 8\), the limit is 7 \(max_bad"):
        read_and_share(loaders_of(7))


def test_samples_that_another_rank_has_met_are_named(caplog):
    loaders = [training(source_of(12, max_bad=1), num_batches=2, rank=rank, ranks=2) for rank in range(2)]
    for rank, loader in enumerate(loaders):
        loader.readers["a"].bad = {"s12": "truncated"} if rank else {}
    read_and_share(loaders, 0)
    assert caplog.messages == ["source a: s12 (truncated); it is skipped"]
    read_and_share(loaders, 0)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("batches", [3, 9, 10, 19])
def test_one_rank_goes_on_after_two_as_if_it_had_read_all(batches):
    two = [training(source_of(*BAD, max_bad=8), num_batches=40, rank=rank, ranks=2) for rank in range(2)]
    read_and_share(two, batches)
    state = merge_states([loader.state_dict() for loader in two])
    alone, one = (training(source_of(*BAD, max_bad=8), num_batches=40) for _ in range(2))
    read_and_share([alone], 2 * batches)
    assert state["bad"]["a"]["counts"] == merge_states([alone.state_dict()])["bad"]["a"]["counts"]
    one.load_state_dict(state)
    read_and_share([one])
    assert one.readers["a"].summary() == "8 samples skipped (truncated 8)"


def test_each_epoch_is_counted_by_itself_also_where_the_reason_changes():
    items = BadItems("s", 1)
    for epoch, reason in enumerate(("truncated", "unreadable")):
        items.note(Fault("s", epoch, "x", reason, "it fails"))
    items.note(Fault("s", 2, "y", "unreadable", "it fails"))
    items.share([items.state_dict()])


def test_counts_by_text_of_an_earlier_version_are_not_held_to_a_limit_of_samples():
    items = BadItems("s", 10)
    items.load_state_dict({"first": {"x": "corrupt"}, "counts": {"0": {"corrupt": 40}}, "fullest": {"corrupt": 40}})
    items.share([items.state_dict()])
    assert items.bad == {"x": "corrupt"}
