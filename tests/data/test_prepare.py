"""Prepared shards hold the samples of their source, whoever writes them and however often that is interrupted."""

import json
import os
import signal
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data.formats.detect import open_source
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.places import find_index, place_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.prepare.members import members_of, safe_key, write_tar
from arlow_vl.data.prepare.plan import ShardSettings, held_out_samples, plan_shards
from arlow_vl.data.prepare.write import prepare
from arlow_vl.data.samples import ImageRef, Sample, Text, about_images
from arlow_vl.errors import DataError
from tests.data.index.made_sources import MadeSource, indexed, laid
from tests.outside_data import JPEG, png, samples, tar_of

# The checks of annotations draw a random item of each list, also while hypothesis draws.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
LETTERS = st.characters(exclude_categories=["Cs", "Cc"])
WORDS = st.text(LETTERS, min_size=1, max_size=10).map(str.strip).filter(lambda text: text.strip("\ufeff"))


def read(folder: Path) -> dict[str, tuple]:
    """Each sample of a folder of shards by its own key: its images' bytes, its texts, its fields."""
    source = open_source(folder)
    found = {sample.key.partition(":")[2]: _content(sample) for sample in source.iterate()}
    assert not source.tally.bad
    assert not source.tally.bad_texts
    assert not source.tally.faults
    return found


def _content(sample: Sample) -> tuple:
    return [read_image(image) for image in sample.images], sample.texts, sample.fields


@st.composite
def texts_about(draw, images: int) -> Text:
    """A text as readers give it, with a place for each image."""
    kind = draw(st.sampled_from(["", "other", "count"]))
    references = tuple(draw(st.lists(WORDS, max_size=2)))
    task = draw(st.sampled_from(["question", "conversation", "document", *(["caption"] if images else [])]))
    if task == "caption":
        return Text(task, about_images(images, answer=draw(WORDS)))
    if task == "document":
        parts = [{"type": "image"} for _ in range(images)] + [{"type": "text", "text": draw(WORDS)}]
        return Text(task, document=tuple(draw(st.permutations(parts))), references=references, kind=kind)
    if images:
        return Text(task, about_images(images, question=draw(WORDS), answer=draw(WORDS)), (), references, kind)
    turns = {"role": "user", "content": draw(WORDS)}, {"role": "assistant", "content": draw(WORDS)}
    return Text(task, turns, (), references, kind)


IMAGES = st.lists(st.sampled_from([JPEG, JPEG + b"x", png(1, 1, b"0"), b"what is this"]), max_size=3)


@settings(max_examples=50)
@given(st.dictionaries(st.text(LETTERS, max_size=8), IMAGES, min_size=1, max_size=4), st.data())
def test_every_sample_is_read_again_as_it_was(tmp_path_factory, made, data):
    members, expected = [], {}
    for key, images in made.items():
        texts = data.draw(st.lists(texts_about(len(images)), min_size=1, max_size=4))
        fields = data.draw(st.sampled_from([{}, {"licence": "CC0"}]))
        unread = data.draw(st.sampled_from([{}, {"texts": [], "questions": 3}]))
        refs = tuple(ImageRef("", 0, len(image)) for image in images)
        members += members_of(Sample(key, refs, tuple(texts), fields | unread), safe_key(key), images)
        expected[safe_key(key)] = images, tuple(texts), fields
    folder = tmp_path_factory.mktemp("shards")
    with open(folder / "a.tar", "wb") as file:
        write_tar(file, iter(members))
    assert read(folder) == expected


def test_a_caption_among_the_fields_is_no_text(tmp_path):
    text = Text("conversation", about_images(1, question="What?", answer="A fox."))
    sample = Sample("1", (ImageRef("", 0, 1),), (text,), {"caption": "of the web page", "url": "https://"})
    with open(tmp_path / "a.tar", "wb") as file:
        write_tar(file, members_of(sample, "1", [JPEG]))
    assert read(tmp_path) == {"1": ([JPEG], (text,), {"url": "https://"})}


@pytest.fixture
def shards(tmp_path):
    """A folder of two tars that use the same keys."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in "ab":
        keys = [f"{number:03d}" for number in range(30)]
        members = [(key, data + name.encode() if key.endswith("jpg") else data) for key, data in samples(*keys)]
        (folder / f"{name}.tar").write_bytes(tar_of(*members))
    return folder


SMALL = ShardSettings(samples_per_shard=7)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_any_number_of_workers_writes_the_same_bytes(shards, tmp_path):
    for workers in (1, 3):
        prepare(indexes_of(shards), tmp_path / str(workers), SMALL, workers=workers)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")
    assert len(list((tmp_path / "1").glob("train-*.tar"))) == 9
    assert list((tmp_path / "1").glob(".*.partial")) == []


def test_shards_are_mixed_and_keys_of_several_shards_stay_apart(shards, tmp_path):
    prepare(indexes_of(shards), tmp_path / "out", SMALL)
    keys = list(read(tmp_path / "out"))
    assert Counter(keys) == Counter(f"{name}/{number:03d}" for name in "ab" for number in range(30))
    assert {key[0] for key in keys[:7]} == {"a", "b"}


def test_index_json_and_the_indexes_are_of_the_shards(shards, tmp_path):
    prepare(indexes_of(shards), tmp_path / "out", SMALL)
    facts = json.loads((tmp_path / "out" / "index.json").read_text())
    for name, entry in facts.items():
        index, _ = find_index(place_of(tmp_path / "out" / name))
        assert index is not None
        (file,) = index.header.files
        assert entry == {"samples": len(index), "bytes": file.size, "sha256": file.sha256}
    assert sum(entry["samples"] for entry in facts.values()) == 60


def test_a_shard_has_at_most_the_bytes_that_were_asked_for(tmp_path):
    contents = [JPEG + bytes(1000 * (n % 9)) for n in range(150)]
    made = [
        Sample(str(n), (image,), (Text("caption", about_images(1, answer=f"no. {n}")),))
        for n, image in enumerate(laid(tmp_path, *contents))
    ]
    prepare([indexed(tmp_path, MadeSource(made))], tmp_path / "out", ShardSettings(shard_size=100_000))
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert max(sizes) <= 100_000
    assert min(sizes[:-1]) > 70_000


def prepare_in_a_group(shards: Path, out: Path) -> None:
    os.setpgid(0, 0)
    prepare(indexes_of(shards), out, SMALL, workers=2)


@pytest.mark.parametrize("shards_there", [1, 4])
def test_killed_and_run_again_it_goes_on(shards, tmp_path, shards_there):
    indexes, out = indexes_of(shards), tmp_path / "out"
    prepare(indexes, tmp_path / "whole", SMALL)
    process = get_context("fork").Process(target=prepare_in_a_group, args=(shards, out))
    process.start()
    end = time.monotonic() + 30
    while len(list(out.glob("*.tar"))) < shards_there and time.monotonic() < end:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    time.sleep(0.2)  # its workers end with it
    there = files_of(out)
    whole = files_of(tmp_path / "whole")
    assert {name: data for name, data in there.items() if name.endswith(".tar")}.items() <= whole.items()
    recorded = json.loads(there.get("index.json", "{}"))
    assert len(recorded) >= len([name for name in there if name.endswith(".tar")]) - 3  # two workers, and this process
    assert prepare(indexes, out, SMALL, workers=2).kept == len(recorded)
    assert {name: data for name, data in files_of(out).items() if not name.endswith(".partial")} == whole


def test_a_shard_that_is_not_what_index_json_says_is_written_again(shards, tmp_path):
    indexes, out = indexes_of(shards), tmp_path / "out"
    count = prepare(indexes, out, SMALL).shards
    whole = files_of(out)
    path = sorted(out.glob("*.tar"))[0]
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8", b"\xff\xd9"))
    assert prepare(indexes, out, SMALL).kept == count - 1
    assert files_of(out) == whole


@pytest.mark.parametrize("index", ["", "[]", "{}"])
def test_a_shard_that_no_index_json_knows_is_written_again(shards, tmp_path, index):
    indexes, out = indexes_of(shards), tmp_path / "out"
    prepare(indexes, out, SMALL)
    whole, path = files_of(out), sorted(out.glob("*.tar"))[0]
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8", b"\xff\xd9"))
    (out / "index.json").write_text(index)
    assert prepare(indexes, out, SMALL).kept == 0
    assert files_of(out) == whole


def test_a_folder_of_other_shards_is_refused(shards, tmp_path):
    indexes, out = indexes_of(shards), tmp_path / "out"
    prepare(indexes, out, SMALL)
    with pytest.raises(DataError) as fault:
        prepare(indexes, out, ShardSettings(samples_per_shard=8))
    assert str(fault.value) == (
        f"{out} holds shards of another samples per shard ({SMALL.samples_per_shard}, not 8); name an empty folder, or "
        "remove this one"
    )
    with pytest.raises(DataError, match="holds shards of other data; name an empty folder"):
        prepare(indexes[:1], out, SMALL)
    with pytest.raises(DataError, match="holds shards already; name an empty folder"):
        prepare(indexes, shards, SMALL)


def test_an_image_that_changed_since_it_was_indexed_ends_it(tmp_path):
    made = [Sample("1", tuple(laid(tmp_path, JPEG)), (Text("caption", about_images(1, answer="x")),))]
    index = indexed(tmp_path, MadeSource(made))
    laid(tmp_path, JPEG[:-1] + b"!")
    with pytest.raises(DataError, match=r"images\.bin, sample 1, image at byte 0: other bytes are there"):
        prepare([index], tmp_path / "out", ShardSettings())
    assert list((tmp_path / "out").glob("*.tar")) == []


def test_texts_that_no_reader_takes_are_told_and_left_out(tmp_path):
    made = [Sample(key, (), (Text("document", document=({"type": "text", "text": key * 2**20},)),)) for key in "ab"]
    made.append(Sample("c", (), (Text("document", document=({"type": "text", "text": "short"},)),)))
    told = prepare([indexed(tmp_path, MadeSource(made))], tmp_path / "out", ShardSettings())
    assert (told.samples, told.too_large) == (1, ["a", "b"])
    assert list(read(tmp_path / "out")) == ["c"]


LINKS = st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=25)


@settings(max_examples=40)
@given(LINKS, st.floats(0.05, 0.9))
def test_no_image_is_on_both_sides(tmp_path_factory, links, share):
    folder = tmp_path_factory.mktemp("linked")
    images = laid(folder, *(f"image {n}".encode() for n in range(31)))
    texts = (Text("document", document=({"type": "text", "text": "x"},)),)
    made = [Sample(str(n), tuple(images[i] for i in link), texts) for n, link in enumerate(links)]
    held_out = held_out_samples(IndexedSamples([indexed(folder, MadeSource(made))]), share)
    sides: list[set] = [set(), set()]
    for link, side in zip(links, held_out.tolist(), strict=True):
        sides[side] |= set(link) or {"no image, the same text"}
    assert not sides[0] & sides[1]


def test_the_share_for_validation_is_kept_and_does_not_depend_on_order(tmp_path):
    images = laid(tmp_path, *(f"image {n}".encode() for n in range(600)))
    made = [Sample(str(n), (image,), (Text("caption", about_images(1, answer="x")),)) for n, image in enumerate(images)]
    index = indexed(tmp_path, MadeSource(made))
    held_out = held_out_samples(IndexedSamples([index]), 0.2)
    assert 0.15 < held_out.mean() < 0.25
    turned = held_out_samples(IndexedSamples([indexed(tmp_path, MadeSource(made[::-1]), into="turned")]), 0.2)
    assert turned[::-1].tolist() == held_out.tolist()
    plan = plan_shards(IndexedSamples([index]), ShardSettings(validation=0.2))
    assert [shard.name for shard in plan.shards] == ["train-000000.tar", "validation-000000.tar"]
    assert sorted(plan.shards[1].positions) == sorted(held_out.nonzero()[0])


def test_a_share_that_leaves_a_side_empty_is_one_sentence(tmp_path):
    made = [Sample("1", (), (Text("document", document=({"type": "text", "text": "x"},)),))]
    with pytest.raises(DataError, match=r"a share of 0\.01 for validation leaves no sample for validation"):
        prepare([indexed(tmp_path, MadeSource(made))], tmp_path / "out", ShardSettings(validation=0.01))
    with pytest.raises(DataError, match="no usable sample, so there is nothing to write"):
        prepare([indexed(tmp_path, MadeSource([]), into="none")], tmp_path / "other", ShardSettings())


def chat(word: str, **more: str) -> str:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": word}]
    return json.dumps({"messages": messages, **more}) + "\n"


def keys_of(source, out: Path) -> list[str]:
    prepare(indexes_of(str(source)), out, ShardSettings())
    return sorted(indexes_of(str(out))[0].key(number) for number in range(len(indexes_of(str(out))[0])))


def test_records_without_a_name_are_called_by_their_place(tmp_path):
    (tmp_path / "my.chats.jsonl").write_text(chat("one") + "\n" + chat("two"))
    assert keys_of(tmp_path / "my.chats.jsonl", tmp_path / "out") == [
        "train-000000.tar:line 1",
        "train-000000.tar:line 3",
    ]


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (("a.jsonl", "b.c.jsonl"), ["a/line 1", "b%2Ec/line 1"]),
        (("a.jsonl", "a.ndjson"), ["a%2Ejsonl/line 1", "a%2Endjson/line 1"]),
    ],
)
def test_records_of_several_files_stay_apart(tmp_path, names, keys):
    folder = tmp_path / "chats"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(chat(name))
    assert keys_of(folder, tmp_path / "out") == [f"train-000000.tar:{key}" for key in keys]


def test_files_of_one_name_in_several_folders_and_keys_with_colons_stay_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00000.tar").write_bytes(tar_of(*samples("00:01:05", "00:02:05")))
        chat = [{"role": "user", "content": name}, {"role": "assistant", "content": "Yes."}]
        (tmp_path / name / "chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    for number, (pattern, expected) in enumerate(
        {
            "a/00000.tar": {"00%3A01%3A05", "00%3A02%3A05"},
            "*/00000.tar": {f"{folder}%2F00000/00%3A0{number}%3A05" for folder in "ab" for number in (1, 2)},
            "*/chat.jsonl": {f"{folder}%2Fchat/line 1" for folder in "ab"},
        }.items()
    ):
        out = tmp_path / f"out{number}"
        assert prepare(indexes_of(f"{tmp_path}/{pattern}"), out, ShardSettings()).samples == len(expected)
        assert set(read(out)) == expected
