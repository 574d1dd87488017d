"""What becomes of images that turn out unusable while a run goes on, in real shards."""

import json
import shutil

import pytest

from arlow_vl.data.collate import SampleCollate
from arlow_vl.data.formats.webdataset import read_whole
from arlow_vl.data.images import DecodedImages, cache_sample_images
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.loader import ResumableLoader
from arlow_vl.data.sample_dataset import SampleDataset
from arlow_vl.data.sequential import SequentialLoader
from arlow_vl.data.sources import Source
from arlow_vl.errors import DataError
from tests.data.conftest import SHARD
from tests.tiny_runs import tiny_tokenizer

PAD = 3


@pytest.fixture
def spoilt(tmp_path):
    """Makes a copy of the shard in which some images begin with other bytes; gives its path and their keys."""

    def spoilt(*numbers: int):
        path = tmp_path / SHARD.name
        data, samples = bytearray(SHARD.read_bytes()), read_whole([SHARD])
        for sample in (samples[number] for number in numbers):
            start = sample.images[0].offset
            data[start : start + 12] = bytes(12)
        path.write_bytes(data)
        return path, [samples[number].key for number in numbers]

    return spoilt


def source_of(path, transform, *, max_bad: int, samples_per_batch: int = 4) -> Source:
    samples = IndexedSamples(indexes_of(path), ["caption"])
    dataset = SampleDataset(samples, tiny_tokenizer(), DecodedImages(transform), max_length=64, one_text=True)
    return Source(name="captions", dataset=dataset, samples_per_batch=samples_per_batch, max_bad=max_bad)


def batches_of(path, transform, *, num_batches: int = 30, **settings) -> ResumableLoader:
    source = source_of(path, transform, **settings)
    collate = SampleCollate(source.dataset.images, pad_token_id=PAD)
    return ResumableLoader([source], collate, seed=0, num_batches=num_batches)


def test_where_none_may_be_bad_a_bad_image_is_an_error_that_names_it(spoilt, transform):
    path, (bad,) = spoilt(2)
    with pytest.raises(DataError, match=rf"{bad}: .*limit is 0 \(max_bad_fraction\).*arlow data verify"):
        list(batches_of(path, transform, max_bad=0))


@pytest.mark.parametrize("samples_per_batch", [1, 4])
def test_for_a_bad_image_its_neighbour_stands_in_and_it_is_counted_once(spoilt, transform, samples_per_batch, caplog):
    path, bad = spoilt(2, 3)
    keys = [sample.key for sample in read_whole([SHARD])]
    loader = batches_of(path, transform, max_bad=2, samples_per_batch=samples_per_batch, num_batches=3 * len(keys))
    whole = list(loader)
    assert all(len(batch["keys"]) == len(batch["pixel_values"]) == samples_per_batch for batch in whole)
    assert {key for batch in whole for key in batch["keys"]} == {f"captions:{key}" for key in keys if key not in bad}
    reader = loader.readers["captions"]
    assert reader.bad.keys() == set(bad)
    assert reader.summary().startswith("2 samples skipped (")
    assert all(caplog.text.count(key) == 1 for key in bad)


def test_a_resumed_stream_has_the_same_stand_ins_and_remembers_the_bad_images(spoilt, transform):
    path, _ = spoilt(1, 5, 6)
    whole = list(batches_of(path, transform, max_bad=3))
    for position in (0, 3, 29):
        first, second = (batches_of(path, transform, max_bad=3) for _ in range(2))
        stream = iter(first)
        for _ in range(position):
            next(stream)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert second.readers["captions"].bad == first.readers["captions"].bad
        assert [batch["keys"] for batch in second] == [batch["keys"] for batch in whole[position:]]


def test_one_bad_image_more_than_is_allowed_ends_the_stream(spoilt, transform):
    path, _ = spoilt(1, 5, 6)
    with pytest.raises(DataError, match="3 samples skipped"):
        list(batches_of(path, transform, max_bad=2))


def test_a_stream_of_bad_images_alone_ends(spoilt, transform):
    path, _ = spoilt(*range(len(read_whole([SHARD]))))
    with pytest.raises(DataError, match="no sample can be used"):
        list(batches_of(path, transform, max_bad=10**6))


def test_validation_leaves_bad_images_out(spoilt, transform):
    path, bad = spoilt(0, 1, 4)
    keys = [sample.key for sample in read_whole([SHARD])]
    source = source_of(path, transform, max_bad=3, samples_per_batch=2)
    validation = SequentialLoader([source], SampleCollate(source.dataset.images, pad_token_id=PAD))
    for _ in range(2):
        read = [key for batch in validation for key in batch["keys"]]
        assert read == [f"captions:{key}" for key in keys if key not in bad]


def test_validation_of_some_samples_draws_them_from_all(transform, tmp_path):
    source = source_of(shutil.copy(SHARD, tmp_path), transform, max_bad=0, samples_per_batch=2)
    some = SequentialLoader([source], SampleCollate(source.dataset.images, pad_token_id=PAD), max_samples=4)
    drawn = [key for batch in some for key in batch["keys"]]
    everything = [f"captions:{source.dataset.key(number)}" for number in range(len(source.dataset))]
    assert len(drawn) == 4 and drawn == sorted(drawn, key=everything.index) != everything[:4]
    assert drawn == [key for batch in some for key in batch["keys"]]


def test_an_image_that_changed_since_it_was_indexed_ends_the_stream(spoilt, transform):
    path, _ = spoilt()
    loader = batches_of(path, transform, max_bad=9)
    spoilt(*range(9))
    with pytest.raises(DataError, match="other bytes are there than when it was indexed"):
        list(loader)


def test_a_bad_image_is_refused_when_the_cache_is_filled(spoilt, encoder, transform, tmp_path):
    path, (bad,) = spoilt(4)
    source = source_of(path, transform, max_bad=1)
    cached = cache_sample_images([source.dataset.samples], encoder, transform, tmp_path / "features")
    assert len(cached.refused) == 1
    dataset = SampleDataset(source.dataset.samples, tiny_tokenizer(), cached, max_length=64, one_text=True)
    loader = ResumableLoader(
        [Source(name="captions", dataset=dataset, samples_per_batch=3, max_bad=1)],
        SampleCollate(cached, pad_token_id=PAD),
        seed=0,
        num_batches=8,
    )
    keys = {key for batch in loader for key in batch["keys"]}
    assert f"captions:{bad}" not in keys
    assert loader.readers["captions"].bad.keys() == {bad}
