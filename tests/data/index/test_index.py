"""The index gives back every sample as it was, by its number, and knows its data again."""

import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data.index.header import bad_samples, outdated, read_header
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.reading import MOST_OPEN, Index, IndexedSamples
from arlow_vl.data.index.records import characters_of
from arlow_vl.data.samples import TASKS, Sample, Text
from arlow_vl.data.shard_samples import BadSample
from arlow_vl.errors import DataError, ResourceError
from tests.data.index.made_sources import MadeSource, caption, hashed, indexed, laid, question

# The checks of annotations draw a random item of each list, also while hypothesis draws.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PARTS = st.lists(
    st.one_of(st.just({"type": "image"}), WORDS.map(lambda text: {"type": "text", "text": text})), max_size=4
)


@st.composite
def made_texts(draw) -> Text:
    task = draw(st.sampled_from(TASKS))
    if task == "document":
        return Text(task, document=tuple(draw(PARTS)))
    turns = [{"role": role, "content": draw(st.one_of(WORDS, PARTS))} for role in ("user", "assistant")]
    return Text(task, tuple(turns), references=tuple(draw(st.lists(WORDS, max_size=2))), kind=draw(WORDS))


FIELDS = st.dictionaries(WORDS, st.one_of(WORDS, st.integers(), st.none()), max_size=2)
SAMPLES = st.lists(st.tuples(WORDS, st.lists(st.binary(min_size=1, max_size=9), max_size=3), FIELDS), max_size=6)


@settings(max_examples=40)
@given(SAMPLES, st.data(), st.sampled_from([1, 3]))
def test_every_sample_comes_back_as_it_was(tmp_path_factory, made, data, threads):
    folder = tmp_path_factory.mktemp("source")
    refs = iter(laid(folder, *(content for _, images, _ in made for content in images)))
    samples = [
        Sample(key, tuple(next(refs) for _ in images), tuple(data.draw(st.lists(made_texts(), max_size=3))), fields)
        for key, images, fields in made
    ]
    index = indexed(folder, MadeSource(samples), threads=threads)
    assert len(index) == len(samples)
    for position, (sample, (_, contents, _)) in enumerate(zip(samples, made, strict=True)):
        assert [read_image(image) for image in index.sample(position).images] == contents
        images = tuple(map(hashed, sample.images, contents))
        expected = Sample(sample.key, images, sample.texts, sample.fields)
        assert index.sample(position) == expected
        assert index.key(position) == sample.key
        assert index.lengths[position] == sum(map(characters_of, sample.texts))
        assert index.rows["image_bytes"][position] == sum(image.size for image in images)
    for task in TASKS:
        having = [n for n, sample in enumerate(samples) if any(text.task == task for text in sample.texts)]
        assert index.select([task]).tolist() == having
        assert index.count([task]) == len(having)
    assert list(index.images()) == [image for n in range(len(index)) for image in index.sample(n).images]


def test_images_are_read_whatever_the_names_before_the_texts(tmp_path):
    mark = ',"texts":[]}'
    (image,) = laid(tmp_path, b"one", name=f"{mark}.bin")
    index = indexed(tmp_path, MadeSource([Sample(mark, (image,), (caption(mark),))]))
    assert list(index.images()) == list(index.sample(0).images) == [hashed(image, b"one")]


def three(folder: Path) -> list[Sample]:
    images = laid(folder, b"one", b"three")
    return [
        Sample("1", (images[0],), (caption("a fox"), question("What?", "fox", "fox", "a fox", kind="other"))),
        Sample("2", (), (Text("document", document=({"type": "text", "text": "Once"},)),)),
        Sample("3", (images[1],), (question("Red?", "yes"),), {"licence": "CC0"}),
    ]


def test_the_same_data_have_the_same_fingerprint_wherever_they_lie(tmp_path):
    fingerprints = set()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        fingerprints.add(indexed(tmp_path / name, MadeSource(three(tmp_path / name))).fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.parametrize("change", ["key", "text", "image", "order"])
def test_other_data_have_another_fingerprint(tmp_path, change):
    samples = three(tmp_path)
    before = indexed(tmp_path, MadeSource(samples)).fingerprint
    first = samples[0]
    if change == "key":
        samples[0] = Sample("0", first.images, first.texts)
    elif change == "text":
        samples[0] = Sample("1", first.images, (caption("a cat"), first.texts[1]))
    elif change == "image":
        laid(tmp_path, b"eno", b"three")
    else:
        samples[1:] = samples[:0:-1]
    assert indexed(tmp_path, MadeSource(samples)).fingerprint != before


def test_an_index_moves_with_its_data(tmp_path):
    (tmp_path / "here").mkdir()
    indexed(tmp_path / "here", MadeSource(three(tmp_path / "here")))
    shutil.move(tmp_path / "here", tmp_path / "there")
    folder = tmp_path / "there" / ".arlow-index" / "made"
    index = Index(folder, read_header(folder))
    assert read_image(index.sample(2).images[0]) == b"three"
    assert index.sample(2).images[0].path == str(tmp_path / "there" / "images.bin")


def test_images_inside_records_are_laid_into_the_index(tmp_path):
    samples = [Sample(str(n), (b"\x00\x01" * n, b"last"), (caption("two", 2),)) for n in (1, 2)]
    index = indexed(tmp_path, MadeSource(samples))
    for position, sample in enumerate(samples):
        assert tuple(map(read_image, index.sample(position).images)) == sample.images


def test_bad_ones_are_counted_by_reason_with_an_example_and_all_are_listed(tmp_path):
    gone = laid(tmp_path, b"gone", name="gone.bin")
    source = MadeSource([*three(tmp_path), Sample("4", tuple(gone), (caption("x"),))])
    (tmp_path / "gone.bin").unlink()
    source.tally.bad += [BadSample("a", "empty_text", count=2), BadSample("b", "empty_text")]
    source.tally.bad_texts.append(BadSample("1, text 3", "answer_not_text", detail=": list", task="question"))
    header = indexed(tmp_path, source).header
    assert header.samples == 3
    assert header.bad["empty_text"] == (3, "a")
    count, example = header.bad["image_unreadable"]
    assert count == 1
    assert "gone.bin" in example
    assert header.bad_texts == {"question": {"answer_not_text": (1, "1, text 3: list")}}
    listed = [(bad["what"], bad["name"]) for bad in bad_samples(tmp_path / ".arlow-index/made", header)]
    assert listed == [("sample", "4"), ("sample", "a"), ("sample", "b"), ("text", "1, text 3")]


@pytest.fixture
def of_file(tmp_path):
    """An index that depends on `data.json`: its folder."""
    (tmp_path / "data.json").write_text("[1]")
    return indexed(tmp_path, MadeSource(three(tmp_path), [tmp_path / "data.json"])).folder


def test_an_index_knows_its_file_again_also_after_it_was_touched(of_file, tmp_path):
    assert outdated(of_file, read_header(of_file)) is None
    os.utime(tmp_path / "data.json", ns=(5, 5))
    assert outdated(of_file, read_header(of_file)) is None
    assert read_header(of_file).files[0].mtime_ns == 5  # noted, so that the bytes are read once


def test_an_index_of_other_bytes_says_so(of_file, tmp_path):
    (tmp_path / "data.json").write_text("[1, 2]")
    assert outdated(of_file, read_header(of_file)) == f"{tmp_path}/data.json had 3 bytes and has 6"
    (tmp_path / "data.json").write_text("[2]")
    assert outdated(of_file, read_header(of_file)) == f"{tmp_path}/data.json has other bytes"
    (tmp_path / "data.json").unlink()
    assert outdated(of_file, read_header(of_file)) == f"{tmp_path}/data.json is gone"


def test_a_file_that_is_written_to_while_it_is_indexed_is_refused(tmp_path):
    class Growing(MadeSource):
        def iterate(self):
            yield from self.samples
            (tmp_path / "data.json").write_text("[1, 2, 3]")

    (tmp_path / "data.json").write_text("[1]")
    with pytest.raises(DataError, match=r"data\.json is written to while it is indexed"):
        indexed(tmp_path, Growing(three(tmp_path), [tmp_path / "data.json"]))
    assert os.listdir(tmp_path / ".arlow-index/made") == []


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 1}', '{"version": 99}', ""])
def test_a_damaged_or_foreign_header_is_no_index(of_file, damage):
    (of_file / "header.json").write_text(damage)
    assert read_header(of_file) is None


def test_a_damaged_index_is_named(of_file):
    header = read_header(of_file)
    with open(of_file / header.records_name, "r+b") as file:
        file.truncate(40)
    with pytest.raises(DataError, match=r"the index is damaged; remove it and run `arlow data index`"):
        Index(of_file, header).sample(2)
    (of_file / header.rows_name).unlink()
    with pytest.raises(DataError, match=r"the index cannot be read .*; remove it and run `arlow data index`"):
        Index(of_file, header).sample(0)


def test_an_index_that_is_written_again_is_the_same_files(tmp_path):
    def state():
        folder = tmp_path / ".arlow-index/made"
        header = replace(read_header(folder), images_read_ns=0)  # the time at which it was begun
        return header, {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "header.json"}

    indexed(tmp_path, MadeSource(three(tmp_path)))
    before = state()
    reader = Index(tmp_path / ".arlow-index/made", read_header(tmp_path / ".arlow-index/made"))
    reader.sample(0)
    indexed(tmp_path, MadeSource(three(tmp_path)))
    assert state() == before
    assert reader.key(2) == "3"


def test_files_of_earlier_indexes_go_an_hour_later(tmp_path):
    old = indexed(tmp_path, MadeSource(three(tmp_path)[:2]))
    indexed(tmp_path, MadeSource(three(tmp_path)))
    assert (old.folder / old.header.records_name).exists()
    os.utime(old.folder / old.header.records_name, (0, 0))
    new = indexed(tmp_path, MadeSource(three(tmp_path)))
    assert not (old.folder / old.header.records_name).exists()
    assert new.key(2) == "3"


def index_on_a_full_disk(folder: Path, said) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, 2**21))
    text = Text("document", document=({"type": "text", "text": "x" * 2**20},))
    try:
        indexed(folder, MadeSource([Sample(str(n), (), (text,)) for n in range(4)]))
    except ResourceError as error:
        said.send(str(error))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    heard, said = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=index_on_a_full_disk, args=(tmp_path, said))
    process.start()
    process.join()
    assert heard.poll()
    assert heard.recv() == (
        f"the index cannot be written to {tmp_path}/.arlow-index/made (File too large); make room there, "
        "or set XDG_CACHE_HOME to a folder with room if it is the cache"
    )
    assert os.listdir(tmp_path / ".arlow-index/made") == []


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More indexes than may be open at once, of 0 to 3 samples each."""
    indexes = []
    for number in range(MOST_OPEN + 20):
        folder = tmp_path_factory.mktemp("shard")
        indexes.append(indexed(folder, MadeSource(three(folder)[: number % 4]), name=f"{number}.tar"))
    return indexes


def test_many_indexes_are_one_row_of_samples(many):
    samples = IndexedSamples(many)
    expected = [(index, local) for index in many for local in range(len(index))]
    assert len(samples) == len(expected)
    for position in [*range(0, len(samples), 7), len(samples) - 1, 0]:
        assert samples.locate(position) == expected[position]
        assert samples.key(position) == samples[position].key == str(expected[position][1] + 1)
    with pytest.raises(IndexError):
        samples.sample(len(samples))


def test_few_of_many_indexes_are_open_at_once(many):
    samples = pickle.loads(pickle.dumps(IndexedSamples(many)))
    for position in range(len(samples)):
        samples.sample(position)
    assert sum(index._files is not None for index in samples.indexes) <= MOST_OPEN


@pytest.mark.parametrize("tasks", [["question"], ["caption", "document"], ["conversation"], TASKS])
def test_tasks_choose_samples_and_their_texts(many, tasks):
    samples = IndexedSamples(many, tasks)
    expected = []
    for index in many:
        for local in range(len(index)):
            sample = index.sample(local)
            if texts := tuple(text for text in sample.texts if text.task in tasks):
                expected.append((sample.key, texts))
    assert len(samples) == len(expected)
    assert [(samples.key(n), samples.sample(n).texts) for n in range(len(samples))] == expected


def test_rows_of_many_samples_are_those_of_each(many):
    samples = IndexedSamples(many, ["question"])
    positions = np.arange(len(samples))[::-1]
    rows = samples.rows(positions)
    for position, row in zip(positions.tolist(), rows, strict=True):
        index, local = samples.locate(position)
        assert row == index.rows[local]


def test_the_fingerprint_of_many_is_that_of_their_data_and_tasks(many):
    assert IndexedSamples(many).fingerprint == IndexedSamples(list(many)).fingerprint
    others = [IndexedSamples(many[:-1]), IndexedSamples(many[::-1]), IndexedSamples(many, ["caption"])]
    assert IndexedSamples(many).fingerprint not in {other.fingerprint for other in others}


def test_no_sample_has_no_number(many):
    assert IndexedSamples([]).fingerprint
    assert len(IndexedSamples([])) == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 2 * MOST_OPEN
