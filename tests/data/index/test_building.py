"""An index is made again when its source stands for other files, and when what was unusable is mended."""

import json

import pytest

from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import IndexedSamples
from tests.outside_data import JPEG, samples, tar_of


def keys(source) -> list[str]:
    indexed = IndexedSamples(indexes_of(source))
    found = [indexed.key(number) for number in range(len(indexed))]
    assert [indexed.sample(number).key for number in range(len(indexed))] == found
    return found


@pytest.fixture
def folders(tmp_path):
    """A line of JSON in each of three folders."""
    for name in ("train1", "train2", "val1"):
        (tmp_path / name).mkdir()
        chat = [{"role": "user", "content": name}, {"role": "assistant", "content": "Yes."}]
        (tmp_path / name / "c.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    return tmp_path


def test_globs_with_one_last_part_have_an_index_each(folders):
    train, val = ["train1/c.jsonl: line 1", "train2/c.jsonl: line 1"], ["c.jsonl: line 1"]
    for _ in range(2):
        assert keys(f"{folders}/*/c.jsonl") == [*train, "val1/c.jsonl: line 1"]
        assert keys(f"{folders}/train*/c.jsonl") == train
        assert keys(f"{folders}/val*/c.jsonl") == val
    assert keys(f"{folders}/train{{1..2}}/c.jsonl") == train
    assert not any("{" in path.name for path in folders.iterdir())


def test_a_file_that_no_longer_matches_leaves_the_index(folders):
    assert len(keys(f"{folders}/*/c.jsonl")) == 3
    (folders / "val1/c.jsonl").rename(folders / "val1/kept.jsonl")
    assert len(keys(f"{folders}/*/c.jsonl")) == 2


def test_folders_with_brackets_in_their_names_have_an_index_each(folders):
    for name, other in (("train1", "a[1]"), ("val1", "a[2]")):
        (folders / name).rename(folders / other)
    texts = [
        indexes_of(folders / name / "c.jsonl")[0].sample(0).texts[0].messages[0]["content"] for name in ("a[1]", "a[2]")
    ]
    assert texts == ["train1", "val1"]


def test_an_image_that_was_missing_is_used_once_it_is_there(tmp_path):
    (tmp_path / "1.png").write_bytes(JPEG)
    (tmp_path / "3.png").touch()
    (tmp_path / "captions.csv").write_text("image,caption\n1.png,One.\n2.png,Two.\n3.png,Three.\n")
    assert keys(tmp_path) == ["1.png"]
    (first,) = indexes_of(tmp_path)
    assert {reason: left_out.count for reason, left_out in first.header.bad.items()} == {
        "missing_image_file": 1,
        "image_empty": 1,
    }
    written = (first.folder / first.header.records_name).stat().st_mtime_ns
    assert keys(tmp_path) == ["1.png"]
    assert (first.folder / first.header.records_name).stat().st_mtime_ns == written  # nothing is read again
    (first.folder / first.header.bad_name).unlink()
    assert keys(tmp_path) == ["1.png"]
    for name in ("2.png", "3.png"):
        (tmp_path / name).write_bytes(JPEG)
    assert keys(tmp_path) == ["1.png", "2.png", "3.png"]


def test_shards_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00000.tar").write_bytes(tar_of(*samples("1")))
    (tmp_path / "b/00001.tar").write_bytes(tar_of(*samples("1")))
    assert keys(f"{tmp_path}/*/*.tar") == ["a/00000.tar:1", "b/00000.tar:1", "00001.tar:1"]
