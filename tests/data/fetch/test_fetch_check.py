import json
import shutil
from pathlib import Path

import pytest

from arlow_vl.data.fetch.check import caption_of, check_groups, check_splits
from arlow_vl.data.fetch.shard_files import Sample, shards_of, write_shards
from arlow_vl.data.formats.webdataset import read_whole
from arlow_vl.data.index.images import read_image
from arlow_vl.data.verify import verify_sources
from arlow_vl.errors import DataError

SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(SAMPLES, tmp_path / "data")
    (tmp_path / "data" / "captions" / "index.json").unlink()
    return tmp_path / "data"


def samples_of(folder, split):
    return [
        Sample(
            key=sample.key.partition(":")[2],
            extension="jpg",
            image=read_image(sample.images[0]),
            text=caption_of(sample),
            fields=sample.fields,
        )
        for sample in read_whole(shards_of(folder / "captions", split))
    ]


def rewrite(folder, split, samples):
    write_shards(folder / "captions", split, samples)


def test_the_committed_samples_have_no_leak():
    assert check_splits(SAMPLES) == {"train": 15, "validation": 2, "test-known": 3, "test-novel": 4}


def committed_shards() -> list[Path]:
    """Without the folders of indexes, which have their shards' names."""
    return sorted(path for path in SAMPLES.rglob("*.tar") if path.is_file())


def test_the_committed_samples_are_whole_and_small():
    scan = verify_sources(committed_shards())
    assert len(scan.samples) == 48
    assert not scan.tally.skipped
    assert not scan.tally.faults
    assert sum(path.stat().st_size for path in SAMPLES.glob("*/*") if path.is_file()) < 1_500_000


def test_the_committed_samples_are_under_permissive_licences():
    shards = committed_shards()
    assert {sample.fields["license"] for sample in read_whole(shards)} == {"MIT", "Apache-2.0"}
    lines = (SAMPLES / "text" / "train.jsonl").read_text().splitlines()
    assert {json.loads(line)["source"] for line in lines} == {"state-of-the-union"}


def test_a_novel_caption_in_training_is_found(folder):
    novel, *rest = samples_of(folder, "test-novel")
    known = samples_of(folder, "train")[0]
    changed = Sample(key=novel.key, extension="jpg", image=novel.image, text=f"A {known.text}!", fields=novel.fields)
    rewrite(folder, "test-novel", [changed, *rest])
    with pytest.raises(DataError, match="has a caption of training"):
        check_splits(folder)


@pytest.mark.parametrize("split", ["validation", "test-known", "test-novel"])
def test_a_held_out_image_in_training_is_found(folder, split):
    train, held_out = samples_of(folder, "train"), samples_of(folder, split)[0]
    last = train[-1]
    leak = Sample(key="leak", extension="jpg", image=held_out.image, text=last.text, fields=last.fields)
    rewrite(folder, "train", [*train, leak])
    with pytest.raises(DataError, match=r"leak.* are nearly the same image \(0 of 256 bits differ\)"):
        check_splits(folder)


def test_a_held_out_caption_as_a_line_of_the_text_is_found(folder):
    caption = samples_of(folder, "validation")[0].text
    with open(folder / "text" / "train.jsonl", "a") as file:
        file.write(json.dumps({"text": f"First line.\n{caption.upper()}\nLast line.", "source": "toy"}) + "\n")
    with pytest.raises(DataError, match=r"train\.jsonl: a whole line is the caption"):
        check_splits(folder)


@pytest.mark.parametrize("other", ["validation", "test-novel"])
def test_a_group_on_both_sides_is_found(other):
    groups = {"train": {"a", "b"}, "validation": {"c"}, "test-known": {"a"}, "test-novel": {"d"}}
    check_groups(groups)
    groups[other].add("b")
    with pytest.raises(DataError, match=f"group 'b' is in train and in {other}"):
        check_groups(groups)


def test_a_known_group_that_training_lacks_is_found():
    groups = {"train": {"a"}, "validation": set(), "test-known": {"x"}, "test-novel": set()}
    with pytest.raises(DataError, match="'x' of test-known is not in train"):
        check_groups(groups)
