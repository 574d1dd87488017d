"""`arlow data index`, `prepare` and `stats`, on files as people have them."""

import contextlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
from pathlib import Path

import pytest

from arlow_vl.cli import main
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.places import find_index, place_of
from tests.outside_data import JPEG, png, samples, tar_of
from tests.tiny_runs import SAMPLES, sentences, tiny_tokenizer, write_jsonl


@pytest.fixture
def arlow(capsys):
    """Runs `arlow data ...`: exit status, standard output and standard error."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        status = main(["data", *map(str, words)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.tar").write_bytes(tar_of(*samples(*(f"{number}-{n}" for n in range(20)))))
    return folder


@pytest.fixture
def coco(tmp_path):
    """A COCO file and its folder of images; an image that is not there, and two captions of one that is."""
    (tmp_path / "photos").mkdir()
    for n in range(20):
        (tmp_path / "photos" / f"{n}.png").write_bytes(png(3 + n, 2, bytes((3 + n) * 2)))
    facts = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(21)],
        "annotations": [{"id": n, "image_id": n % 21, "caption": f"no. {n}"} for n in range(22)],
    }
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(facts))
    return path


def headers(folder: Path) -> dict[str, int]:
    """When each index was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob(".arlow-index/*/header.json")}


@pytest.mark.parametrize("workers", [1, 2])
def test_index_makes_what_lacks_beside_the_data(arlow, shards, workers):
    status, out, err = arlow("index", shards, "--workers", str(workers))
    assert (status, err) == (0, "")
    assert "index: 3 of 3 files, 60 samples" in out
    assert out.endswith("60 used, 0 skipped, 0 faults\n")
    before = headers(shards)
    (shards / "1.tar").write_bytes(tar_of(*samples("other")))
    assert arlow("index", shards, "--workers", str(workers))[1].endswith("41 used, 0 skipped, 0 faults\n")
    after = headers(shards)
    assert {name for name in after if after[name] != before[name]} == {"1.tar"}


def test_damage_and_too_many_bad_samples_end_with_3(arlow, shards):
    (shards / "1.tar").write_bytes(tar_of(*samples("a", "b"))[:-600])
    (shards / "2.tar").write_bytes(tar_of(*samples("c"), ("lone\x1b.jpg", JPEG)))
    status, out, err = arlow("index", shards)
    assert (status, err) == (3, "")
    assert f"{shards}/1.tar: ends inside a header at byte 5,120" in out
    assert "2.tar:lone\\x1b: missing_text" in out
    (shards / "1.tar").unlink()
    status, out, err = arlow("index", shards, "--max-bad-fraction", "0.01")
    assert status == 3
    assert "1 of 22 samples is unusable, the limit is 1%: missing_text 1 (as 2.tar:lone\\x1b" in err


def test_a_fault_that_was_mended_is_forgotten(arlow, shards):
    (shards / "index.json").write_text('{"0.tar": {"samples": 7}}')
    assert arlow("index", shards)[0] == 3
    (shards / "index.json").write_text('{"0.tar": {"samples": 20}}')
    assert arlow("index", shards)[0] == 0


def test_a_source_without_an_index_and_one_with_an_older_index_are_told_apart(shards):
    tar = shards / "0.tar"
    assert find_index(place_of(tar)) == (None, "has no index")
    indexes_of(tar)
    index, reason = find_index(place_of(tar))
    assert index is not None and (len(index), reason) == (20, "")
    tar.write_bytes(tar_of(*samples("other")))
    assert find_index(place_of(tar)) == (
        None,
        f"has an index that is older than the data ({tar} had 52,224 bytes and has 3,584)",
    )


def test_where_the_folder_cannot_be_written_the_cache_has_the_index(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (shards / ".arlow-index").write_text("in the way")  # as good as a folder of others
    indexes = indexes_of(shards, workers=2)
    assert [len(index) for index in indexes] == [20, 20, 20]
    assert all(index.folder.is_relative_to(tmp_path / "cache" / "arlow" / "index") for index in indexes)
    assert indexes[0].sample(3).images[0].path == str(shards / "0.tar")
    assert find_index(place_of(shards / "2.tar"))[0] is not None


def test_no_place_for_an_index_is_one_sentence(arlow, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (shards / ".arlow-index").write_text("in the way")
    (tmp_path / "cache").write_text("in the way")
    status, _, err = arlow("index", shards / "0.tar")
    assert status == 6
    assert f"the index of {shards}/0.tar can be written neither beside it nor to {tmp_path}/cache/arlow/index/" in err
    assert "set XDG_CACHE_HOME to a folder that can be written" in err


def test_annotations_have_one_index_for_each_folder_of_images(arlow, coco, tmp_path):
    status, out, _ = arlow("index", coco, "--images", tmp_path / "photos")
    assert status == 0
    assert "20 used, 1 skipped (missing_image_file 1)" in out
    index, _ = find_index(place_of(coco, tmp_path / "photos"))
    assert index is not None and index.header.totals["caption"] == 21
    assert index.sample(0).images[0].path == str(tmp_path / "photos" / "0.png")
    assert find_index(place_of(coco)) == (None, "has no index")


def test_a_new_file_of_a_source_makes_a_new_index(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": name}]}) + "\n"
        )
        assert len(indexes_of(str(tmp_path / "*.jsonl"))[0]) == (1 if name == "a" else 2)


def test_prepare_writes_shards_of_annotations_with_a_side_for_validation(arlow, coco, tmp_path):
    command = ("prepare", coco, "--images", tmp_path / "photos", "--out", tmp_path / "out", "--validation", "0.3")
    status, out, err = arlow(*command, "--workers", "2")
    assert (status, err) == (0, "")
    assert "missing_image_file 1 (as " in out
    assert "prepare: 20 samples in " in out
    sizes = [sum(map(len, indexes_of(tmp_path / "out" / f"{side}-*.tar"))) for side in ("train", "validation")]
    apart = f"{sizes[1]} of the samples for validation"
    assert out.endswith(f"{tmp_path}/out: 20 samples in 2 shards, {apart}\n")
    assert sum(sizes) == 20
    assert min(sizes) > 0
    assert arlow(*command)[1].endswith(f"{tmp_path}/out: 20 samples in 2 shards, 2 of them were there, {apart}\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shard-size", "many"], "is a number of bytes, as 256MiB or 1GB, got 'many'"),
        (["--shard-size", "1k"], "a shard has at least 65,536 bytes, got 1,000"),
        (["--shard-size", "1MB", "--samples-per-shard", "3"], "not allowed with argument"),
        (["--validation", "1"], "the share for validation is at least 0 and under 1"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(arlow, shards, tmp_path, words, sentence):
    status, _, err = arlow("prepare", shards, "--out", tmp_path / "out", *words)
    assert status == 2
    assert sentence in err
    assert not (tmp_path / "out").exists()


def test_prepare_stops_where_too_much_is_bad(arlow, shards, tmp_path):
    (shards / "0.tar").write_bytes(tar_of(*(member for n in range(20) for member in [(f"{n}.jpg", JPEG)])))
    status, _, err = arlow("prepare", shards, "--out", tmp_path / "out")
    assert status == 3
    assert "20 of 60 samples are unusable, the limit is 10%: missing_text 20" in err
    assert "raise max_bad_fraction (--max-bad-fraction)" in err
    assert not (tmp_path / "out").exists()
    status, out, _ = arlow("prepare", shards, "--out", tmp_path / "out", "--max-bad-fraction", "0.34")
    assert status == 0 and "40 samples in 1 shard" in out


def test_stats_count_samples_texts_lengths_and_sizes(arlow, coco, tmp_path):
    os.truncate(tmp_path / "photos" / "7.png", 40)
    status, out, _ = arlow("stats", coco, "--images", tmp_path / "photos", "--json")
    facts = json.loads(out)
    assert status == 0
    assert (facts["samples"], facts["images"], facts["texts"]["caption"]) == (20, 20, 21)
    assert facts["characters"] == sum(len(f"no. {n}") for n in range(22) if n != 20)
    assert facts["characters_per_sample"]["0.5"] == 6
    assert facts["bad"] == {"missing_image_file": 1}
    sizes = facts["sizes"]
    assert (sizes["formats"], sizes["unreadable"]) == ({"PNG": 19}, {"truncated": 1})
    assert (sizes["width"]["0"], sizes["width"]["1"], sizes["height"]["0.5"]) == (3, 22, 2)
    status, out, _ = arlow("stats", coco, "--images", tmp_path / "photos")
    assert "samples      20\n" in out
    assert "texts        21 of task caption\n" in out
    assert re.search(r"^languages    .+ \(of 20 samples looked at\)$", out, re.MULTILINE)
    assert "width        3 to " in out
    assert "unreadable   truncated 1\n" in out
    assert "bad          missing_image_file 1\n" in out


def test_a_source_that_holds_no_sample_is_one_sentence(arlow, tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    for command in ("index", "stats", "verify"):
        status, _, err = arlow(command, tmp_path)
        assert status == 3
        assert err.splitlines()[-1].startswith(f"arlow: {tmp_path}: ")
        assert err.endswith("; name other data\n")


def told_on_a_full_disk(words, found):
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # as a disk with so much room
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        status = main(["data", *words])
    found.put((status, error.getvalue().splitlines()[-1]))


@pytest.mark.parametrize("command", ["prepare", "tokenize"])
def test_a_full_disk_is_one_sentence_that_says_what_to_do(arlow, shards, tmp_path, command):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "a.jsonl", sentences(300))
    assert arlow("index", shards)[0] == 0
    of = {
        "prepare": [shards, "--workers", "1"],
        "tokenize": [tmp_path / "a.jsonl", "--tokenizer", tmp_path / "tokenizer"],
    }
    words = [command, *map(str, of[command]), "--out", str(tmp_path / "out")]
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    process = context.Process(target=told_on_a_full_disk, args=(words, found))
    process.start()
    process.join(60)
    status, sentence = found.get()
    assert status == 6
    assert sentence.startswith("arlow: the disk")
    assert sentence.endswith("is full (File too large); make room and run the command again: what is whole is kept")
    assert arlow(*words)[0] == 0


def test_what_is_no_source_is_told(arlow, tmp_path):
    for command in ("index", "stats"):
        status, _, err = arlow(command, tmp_path / "nothing")
        assert status == 3
        assert f"no such file or folder: {tmp_path}/nothing" in err


def test_a_source_of_which_nothing_is_usable_is_no_empty_result(tmp_path, arlow):
    """Annotations whose images start elsewhere: no overlap would be false comfort."""
    record = {"messages": [{"role": "user", "content": "<image>hm"}, {"role": "assistant", "content": "a"}]}
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(record | {"images": ["gone.jpg"]}) + "\n")
    for command in (["stats", path], ["overlap", path, path], ["prepare", path, "--out", tmp_path / "x"]):
        status, _, told = arlow(*command)
        assert status == 3
        assert "none of 1 sample can be used: missing_image_file 1" in told and "(--images) names the folder" in told


def test_shards_are_not_written_among_other_files(tmp_path, arlow):
    shutil.copy(SAMPLES / "fox.jpg", tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("A fox.")
    status, _, told = arlow("prepare", tmp_path, "--out", tmp_path)
    assert status == 3 and "holds other files; name an empty folder" in told
    assert not list(tmp_path.glob("*.tar"))
