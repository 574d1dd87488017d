"""Overlap of two sources, on shards and folders as people have them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arlow_vl.cli import main
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.overlap.sources import Overlap, Pair, overlap_of
from tests.outside_data import encoded, tar_of


def photo(seed: int, **options) -> bytes:
    """An image of soft patches, as a photograph; `quality` and `size` as given."""
    dice = np.random.default_rng(seed)
    small = Image.fromarray(dice.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    image = small.resize(options.pop("size", (160, 120)), Image.Resampling.BICUBIC)
    return encoded(image, options.pop("image_format", "JPEG"), **options)


PHOTOS = {name: photo(number, quality=92) for number, name in enumerate("abcdefgh")}
SMALLER = photo(0, quality=60, size=(120, 90))
RECOMPRESSED = photo(1, quality=50)


def shard(path: Path, **images: bytes) -> Path:
    path.write_bytes(tar_of(*(m for key, data in images.items() for m in ((f"{key}.jpg", data), (f"{key}.txt", b"x")))))
    return path


@pytest.fixture
def compare(tmp_path):
    def compare_images(a: dict[str, bytes], b: dict[str, bytes], **how) -> Overlap:
        sources = shard(tmp_path / "a.tar", **a), shard(tmp_path / "b.tar", **b)
        return overlap_of(*map(indexes_of, sources), **how)

    return compare_images


def test_the_same_bytes_and_nearly_the_same_look_are_found_and_nothing_else(compare):
    found = compare(PHOTOS, {"same": PHOTOS["c"], "small": SMALLER, "other": photo(99), "again": RECOMPRESSED})
    assert [(pair.first, pair.second, pair.exact) for pair in found.across] == [
        ("a.tar:c", "b.tar:same", True),
        ("a.tar:a", "b.tar:small", False),
        ("a.tar:b", "b.tar:again", False),
    ]
    assert (found.share_of_images, found.share_of_samples, found.is_complete) == (0.75, 0.75, True)
    assert found.first.pairs == found.second.pairs == []


def test_duplicates_within_each_are_paired_with_the_first(compare):
    a = {"one": PHOTOS["a"], "two": PHOTOS["b"], "three": PHOTOS["a"], "four": PHOTOS["a"], "near": SMALLER}
    found = compare(a, {"x": photo(50), "y": photo(50)})
    assert [pair[:2] for pair in found.first.pairs if pair.exact] == [
        ("a.tar:one", "a.tar:three"),
        ("a.tar:one", "a.tar:four"),
    ]
    assert [pair[:2] for pair in found.first.pairs if not pair.exact] == [("a.tar:one", "a.tar:near")]
    assert found.second.pairs == [Pair("b.tar:x", "b.tar:y", 0, True)]
    assert (found.first.images, found.first.different) == (5, 3)
    assert found.across == []


def test_the_same_pixels_in_another_file_are_near_at_distance_0(compare):
    png = photo(3, image_format="PNG")
    bmp = encoded(Image.open(io.BytesIO(png)), "BMP")
    found = compare({"a": png}, {"b": bmp})
    assert found.across == [Pair("a.tar:a", "b.tar:b", 0, False)]


def test_an_unusable_image_is_compared_by_its_bytes_and_counted(compare):
    cut = PHOTOS["a"][:-50]
    found = compare({"cut": cut, "a": PHOTOS["a"]}, {"x": cut, "y": b"no image"})
    assert found.across == [Pair("a.tar:cut", "b.tar:x", 0, True)]
    assert dict(found.first.unreadable) == {"truncated": 1}
    assert dict(found.second.unreadable) == {"truncated": 1, "not_an_image": 1}


def test_fewer_bits_find_fewer(compare):
    b = {"small": SMALLER, "again": RECOMPRESSED}
    distances = sorted(pair.distance for pair in compare(PHOTOS, b).across)
    found = compare(PHOTOS, b, most_bits=distances[0])
    assert all(pair.distance <= distances[0] for pair in found.across)
    assert len(found.across) == sum(distance == distances[0] for distance in distances)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_found_does_not_depend_on_the_number_of_processes(compare, workers):
    many = {f"{n:02d}": photo(n % 20, quality=70 + n // 2) for n in range(80)}
    told = []
    found = compare(many, PHOTOS, workers=workers, progress=lambda *counts: told.append(counts))
    assert [pair.second for pair in found.across] == [f"b.tar:{name}" for name in "abcdefgh"]
    assert len({pair.second for pair in found.first.pairs}) == 60
    assert told[-1] == (found.first.different + 8 - sum(pair.exact for pair in found.across),) * 2


def test_of_a_sample_with_several_images_the_image_is_named(tmp_path):
    def chats(path: Path, names: list[str]) -> Path:
        text = "<image>" * len(names) + "What?"
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "That."}]
        path.write_text(json.dumps({"messages": turns, "images": names}) + "\n")
        return path

    for name, data in PHOTOS.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    sources = chats(tmp_path / "a.jsonl", ["a.jpg", "b.jpg"]), chats(tmp_path / "b.jsonl", ["c.jpg", "b.jpg"])
    found = overlap_of(*map(indexes_of, sources))
    assert [(pair.first.partition(", ")[2], pair.second.partition(", ")[2]) for pair in found.across] == [
        ("image 1", "image 1")
    ]
    assert (found.share_of_images, found.share_of_samples) == (0.5, 1.0)


def test_the_command_tells_people_and_programs(tmp_path, capsys):
    shard(tmp_path / "a.tar", **PHOTOS)
    shard(tmp_path / "b.tar", same=PHOTOS["c"], small=SMALLER, other=photo(99), cut=PHOTOS["d"][:-50])
    words = ["data", "overlap", str(tmp_path / "a.tar"), str(tmp_path / "b.tar"), "--workers", "1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "of B in A: 2 images, 50.00% (1 exact, 1 near), of 2 samples, 50.00%" in out
    assert "1 image compared by their bytes alone (truncated 1)" in out
    assert "A, B: a.tar:c, b.tar:same: same bytes" in out
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["b_in_a"]["share_of_images"] == 0.5
    assert report["b_in_a"]["pairs"][0] == {
        "first": "a.tar:c",
        "second": "b.tar:same",
        "distance": 0,
        "exact": True,
    }
    assert report["b"]["unreadable"] == {"truncated": 1}


def test_a_source_compared_with_itself_is_all_in_it(compare, tmp_path):
    path = shard(tmp_path / "a.tar", **PHOTOS)
    found = overlap_of(indexes_of(path), indexes_of(path))
    assert found.share_of_images == 1.0


@pytest.mark.parametrize("wrong", ["15", "-1", "x", "²"])
def test_bits_that_are_none_are_refused(capsys, wrong):
    assert main(["data", "overlap", "a", "b", f"--max-bits={wrong}"]) == 2
    assert "whole number from 0 to 14" in capsys.readouterr().err
