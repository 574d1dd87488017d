import json
import os
import pickle
from collections import Counter
from time import process_time

import pytest

from arlow_vl.data.formats.webdataset import read_whole
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.report import report_left_out
from arlow_vl.data.shard_samples import ReaderLimits
from arlow_vl.data.shards import gather_shard
from arlow_vl.errors import DataError
from tests.data.conftest import read_shards
from tests.outside_data import (
    BODY,
    END_MARKER,
    FOUR,
    JPEG,
    KEYS,
    WHOLE,
    pax_header,
    samples,
    tar_header,
    tar_member,
    tar_of,
    write_index,
)


def gathered(data: bytes, folder, **limits) -> tuple[list[str], list[str]]:
    """Keys of the samples of a shard read within these limits, and the damage that ended the reading."""
    (folder / "a.tar").write_bytes(data)
    found, _, damage = gather_shard(folder / "a.tar", ReaderLimits(**limits))
    return [sample.key for sample in found.samples], damage


def test_samples_come_in_file_order_with_text_and_fields(scan):
    found = scan(tar_of(*samples("b"), ("b.json", b'{"source": "x"}'), *samples("a")))
    assert found.outcome == (["b", "a"], {}, 0)
    assert found.captions == ["caption b", "caption a"]
    assert [sample.fields for sample in found.samples] == [{"source": "x"}, {}]


def test_the_image_is_read_from_where_it_lies(scan):
    sample = scan(tar_of(("a.jpg", JPEG), ("a.txt", b"x"))).samples[0]
    assert (read_image(sample.images[0]), sample.key) == (JPEG, "a.tar:a")


def test_a_sample_can_be_sent_to_another_process(scan):
    sample = scan(tar_of(*samples("a"))).samples[0]
    assert read_image(pickle.loads(pickle.dumps(sample)).images[0]) == JPEG


def test_a_shard_that_shrank_after_the_scan_is_an_error(scan):
    sample = scan(WHOLE).samples[3]
    os.truncate(sample.images[0].path, 600)
    with pytest.raises(DataError, match=r"a\.tar:3.* is shorter than when it was indexed"):
        read_image(sample.images[0], sample.key)


def test_webdatasets_own_writer_is_read(scan, tmp_path):
    from webdataset import TarWriter

    with TarWriter(str(tmp_path / "w.tar")) as writer:
        writer.write({"__key__": "x/000", "jpg": JPEG, "txt": "a cat", "json": {"source": "s"}})
    found = read_shards(tmp_path / "w.tar")
    assert (found.keys, found.captions, found.samples[0].fields) == (["x/000"], ["a cat"], {"source": "s"})


TEXTS = {
    "plain": (b"a cat", "a cat"),
    "byte-order mark": (b"\xef\xbb\xbfa cat", "a cat"),
    "white space": (b" \r\n\ta cat \n", "a cat"),
    "special tokens": (b"<image> <|endoftext|> </s>", "<image> <|endoftext|> </s>"),
    "the limit": (b"a" * 2**20, "a" * 2**20),
    "over the limit": (b"a" * (2**20 + 1), "text_too_large"),
    "empty": (b"", "empty_text"),
    "only white space": (b"\xef\xbb\xbf \n", "empty_text"),
    "NUL": (b"a\0b", "nul_in_text"),
    "Latin-1": (b"caf\xe9", "not_utf8"),
    "UTF-16": ("a cat".encode("utf-16"), "not_utf8"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_are_utf8_without_mark_and_white_space(scan, kind):
    raw, result = TEXTS[kind]
    found = scan(tar_of(("a.txt", raw), ("a.jpg", JPEG)))
    assert (found.captions or list(found.tally.skipped)) == [result]


CAPTIONS = {
    "good": (b'{"caption": " a cat "}', "a cat"),
    "a whole surrogate pair": (b'{"caption": "\\ud83d\\ude00"}', "\U0001f600"),
    "half a surrogate pair": (b'{"caption": "\\ud800"}', "bad_json"),
    "missing": (b"{}", "missing_text"),
    "a number": (b'{"caption": 3}', "missing_text"),
    "empty": (b'{"caption": " "}', "empty_text"),
    "NUL": (b'{"caption": "a\\u0000"}', "nul_in_text"),
    "no object": (b'["caption"]', "bad_json"),
    "broken": (b'{"caption": "a', "bad_json"),
    "nested without end": (b"[" * 200_000, "bad_json"),
    "a giant number": (b'{"caption": "a", "n": %s}' % (b"9" * 5000), "bad_json"),
    "quotes without end": (b'"' + b'\\"' * 200_000, "bad_json"),
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_without_a_txt_the_json_caption_is_the_text(scan, kind):
    raw, result = CAPTIONS[kind]
    found = scan(tar_of(("a.jpg", JPEG), ("a.json", raw)))
    assert (found.captions or list(found.tally.skipped)) == [result]


def test_a_txt_goes_before_a_json_caption_even_if_it_is_empty(scan):
    caption = ("a.json", b'{"caption": "from json"}')
    assert scan(tar_of(("a.jpg", JPEG), caption, ("a.txt", b"from txt"))).captions == ["from txt"]
    assert scan(tar_of(("a.jpg", JPEG), caption, ("a.txt", b" "))).tally.skipped == {"empty_text": 1}


def test_a_broken_json_beside_a_good_txt_costs_the_fields_alone_and_is_counted(scan):
    found = scan(tar_of(*samples("a"), ("a.json", b"{")))
    assert (found.outcome, found.samples[0].fields) == ((["a"], {}, 0), {})
    assert found.tally.ignored == {"bad_json": 1}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.jpg", JPEG)], "missing_text"),
        ([("a.txt", b"x")], "missing_image"),
        ([("a.jpg", JPEG), ("a.png", JPEG), ("a.txt", b"x")], "several_images"),
        ([("a.jpg", JPEG), ("a.jpg", JPEG), ("a.txt", b"x")], "several_images"),
        ([("a.jpg", JPEG), ("a.txt", b"x"), ("a.gif", JPEG)], "several_images"),
        ([("a.jpg", JPEG), ("a.json", b"{}"), ("a.json", b"{}")], "several_texts"),
    ],
)
def test_other_than_one_image_and_one_text_is_skipped_and_counted_once(scan, members, reason):
    assert scan(tar_of(*samples("0"), *members, *samples("1"))).outcome == (["0", "1"], {reason: 1}, 0)


@pytest.mark.parametrize("kinds", [("jpg", "txt"), ("txt", "jpg"), ("jpg", "json", "txt")])
def test_members_sorted_by_kind_still_make_samples(scan, kinds):
    contents = {"jpg": JPEG, "txt": b"x", "json": b"{}"}
    members = [(f"{key}.{kind}", contents[kind]) for kind in kinds for key in "abc"]
    assert scan(tar_of(*members)).outcome == (["a", "b", "c"], {}, 0)


@pytest.mark.parametrize("between", [[], samples("b")])
def test_of_a_key_that_comes_twice_the_first_whole_sample_stays(scan, between):
    found = scan(tar_of(("a.jpg", JPEG), ("a.txt", b"first"), *between, ("a.jpg", JPEG), ("a.txt", b"second")))
    assert found.tally.skipped == {"duplicate_key": 1}
    assert found.captions[0] == "first"


def test_an_incomplete_first_sample_does_not_hide_the_whole_one_after_it(scan):
    found = scan(tar_of(("a.jpg", JPEG), *samples("b", "a")))
    assert (sorted(found.keys), found.tally.skipped) == (["a", "b"], {"missing_text": 1})


def test_extensions_begin_at_the_first_dot_of_the_last_part_and_ignore_case(scan):
    members = [("v1.0/A.JPG", JPEG), ("v1.0/A.TXT", b"x"), ("v1.0/b.Jpeg", JPEG), ("v1.0/b.txt", b"x")]
    assert scan(tar_of(*members)).keys == ["v1.0/A", "v1.0/b"]


# Members beside the four samples; what is skipped, with the number of samples, and what is ignored, of members.
NAMES = {
    "an image and a text of other keys": ([("img.1.jpg", JPEG), ("img.2.txt", b"x")], {"dot_in_key": 2}, {}),
    "a whole sample": ([("p.0000.jpg", JPEG), ("p.0000.txt", b"x")], {"dot_in_key": 1}, {}),
    "a mask of a sample": ([("0.mask.png", JPEG)], {}, {".mask.png": 1}),
    "two more images of a sample": ([("0.a.png", JPEG), ("0.b.png", JPEG)], {}, {".a.png": 1, ".b.png": 1}),
    "a translation of a sample": ([("0.de.txt", b"x")], {}, {".de.txt": 1}),
    "a whole sample beside its namesake": ([("0.1.jpg", JPEG), ("0.1.txt", b"x")], {"dot_in_key": 1}, {}),
    "a mask of an incomplete sample": ([("a.jpg", JPEG), ("a.m.png", JPEG)], {"missing_text": 1}, {".m.png": 1}),
    "a text named after the file": ([("a.jpg", JPEG), ("a.jpg.txt", b"x")], {"missing_text": 1}, {".jpg.txt": 1}),
    "two suffixes": ([("x.tar.gz.jpg", JPEG)], {"dot_in_key": 1}, {}),
    "a part of a name": ([("a.jpgx", JPEG), ("b.xtxt", b"x")], {}, {".jpgx": 1, ".xtxt": 1}),
    "upper case": ([("P.0.JPG", JPEG), ("P.0.TXT", b"x")], {"dot_in_key": 1}, {}),
    "a dot in a folder": ([("a.b/README", b"x"), ("a.b/c.cls", b"1")], {}, {"no_extension": 1, ".cls": 1}),
    "left over": ([("._0.jpg", b"x"), ("__MACOSX/0.jpg", b"x")], {}, {"hidden_file": 1, "system_file": 1}),
    "two texts for an image": ([("a.jpg", JPEG), ("a.en.txt", b"x"), ("a.de.txt", b"y")], {"missing_text": 1}, None),
}


@pytest.mark.parametrize("kind", NAMES)
def test_one_rule_decides_key_and_kind_and_what_it_leaves_out_is_counted(scan, kind):
    members, skipped, ignored = NAMES[kind]
    found = scan(tar_of(*FOUR, *members))
    assert found.outcome == (KEYS, skipped, 0)
    assert found.captions == [f"caption {key}" for key in KEYS]
    assert ignored is None or dict(found.tally.ignored) == ignored


@pytest.mark.parametrize(
    "names",
    [
        [name for n in range(500) for name in (f"photo.{n:04d}.jpg", f"photo.{n:04d}.txt")],
        [f"photo.{n:04d}.jpg" for n in range(500)],
        ["photo.txt", *(f"photo.{n:04d}.jpg" for n in range(500))],
        ["photo.jpg"] * 501 + ["photo.txt"] * 501,
        ["photo.jpg", "photo.txt"] * 501 + ["photo.jpg"],
    ],
)
def test_no_number_of_samples_counts_as_one(scan, names):
    contents = {"jpg": JPEG, "txt": b"x"}
    found = scan(tar_of(*samples(*map(str, range(20))), *((name, contents[name[-3:]]) for name in names)))
    assert found.tally.skipped.total() >= 500
    with pytest.raises(DataError, match=r"\d+ of 52\d samples are unusable"):
        found.tally.check("a.tar")


def test_a_link_as_often_as_one_likes_is_no_single_sample(scan):
    links = b"".join(tar_header("a.jpg", 0, b"2") for _ in range(30))
    assert scan(links + WHOLE).tally.skipped == {"missing_image": 29}


def test_members_of_one_name_are_counted_each(scan):
    found = scan(tar_member("a.jpg", b"") * 3000 + WHOLE)
    assert found.outcome == (KEYS, {"several_images": 2999}, 0)


def test_kinds_of_ignored_members_are_bounded(scan):
    found = scan(tar_of(*FOUR, *((f"0.x{n}", b"") for n in range(300)), ("0." + "y" * 90, b"")))
    assert len(found.tally.ignored) <= 101
    assert found.tally.ignored.total() == 301
    assert found.tally.ignored["others"] == 201


@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg", "a/../x.jpg", "C:\\x.jpg", "c:/x.jpg", "..\\x.jpg", "\\x.jpg"])
def test_unsafe_names_are_skipped_and_counted(scan, name):
    assert scan(tar_of((name, JPEG), *FOUR)).outcome == (KEYS, {"unsafe_name": 1}, 0)


def test_names_with_a_nul_or_without_utf8_are_unsafe(scan):
    members = tar_member(b"a\0b.jpg", JPEG) + tar_member(b"\xe9.jpg", JPEG)
    members += pax_header("path", b"a\0b.jpg") + tar_member("c.jpg", JPEG)
    assert scan(members + WHOLE).outcome == (KEYS, {"unsafe_name": 3}, 0)


IGNORED = "._0.jpg __MACOSX/0.jpg Thumbs.db x/thumbs.db .DS_Store README 0.cls 0.pkl 0.pyd 0.pth 0.pt 0.npy a.__url__"


@pytest.mark.parametrize("name", IGNORED.split())
def test_what_is_no_samples_member_is_ignored_and_no_bad_sample(scan, name):
    code = b"cos\nsystem\n(S'exit 1'\ntR."
    found = scan(tar_of(FOUR[0], (name, code), *FOUR[1:]))
    assert found.outcome == (KEYS, {}, 0)
    assert found.tally.ignored.total() == 1


def test_folders_are_ignored(scan):
    assert scan(tar_header("../x/", 0, b"5") + WHOLE).outcome == (KEYS, {}, 0)


def test_an_image_over_the_limit_is_skipped_by_its_header(tmp_path):
    with open(tmp_path / "big.tar", "wb") as file:
        file.write(tar_header("a.jpg", 2**30))
        file.seek(512 + 2**30)
        file.write(tar_member("a.txt", b"x") + WHOLE)
    assert read_shards(tmp_path / "big.tar").outcome == (KEYS, {"image_too_large": 1}, 0)


def test_the_number_of_members_and_the_texts_memory_are_bounded(tmp_path):
    keys, damage = gathered(WHOLE, tmp_path, max_members=4)
    assert (keys, len(damage)) == (["0", "1"], 1)
    (damage,) = gathered(WHOLE, tmp_path, max_held_bytes=5000)[1]
    assert "the rest is not read" in damage


def test_json_is_weighed_by_what_it_takes_in_memory(tmp_path):
    lists = b'{"caption": "a", "v": [' + b"[]," * 100_000 + b"0]}"
    assert gathered(tar_of(("a.jpg", JPEG), ("a.json", lists)), tmp_path, max_held_bytes=2_000_000)[1]


def test_a_missing_shard_is_named_with_the_way_to_get_it(tmp_path):
    (tmp_path / "a.tar").write_bytes(WHOLE)
    with pytest.raises(DataError, match=r"gone\.tar.*arlow data fetch"):
        read_shards(tmp_path / "a.tar", tmp_path / "gone.tar")


@pytest.mark.parametrize("address", ["pipe:touch sentinel", "http://127.0.0.1:9/a.tar", "file:a.tar"])
def test_pipes_and_addresses_are_never_followed(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such shard"):
        read_shards(address)
    assert list(tmp_path.iterdir()) == []


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DataError, match="not a regular file"):
        read_shards(tmp_path / "a.tar")


@pytest.mark.parametrize("data", [END_MARKER, b"", tar_of(("a.jpg", JPEG))])
def test_shards_without_any_usable_sample_are_an_error(scan, data):
    sentences = "nothing there can be used|no sample can be used: |1 of 1 samples is unusable"
    with pytest.raises(DataError, match=rf"a\.tar: ({sentences})"):
        scan(data).tally.check("a.tar")


def test_no_shards_are_an_error():
    with pytest.raises(DataError, match="no shard"):
        read_shards()


def test_another_count_or_size_than_the_index_says_is_a_fault(scan, tmp_path):
    write_index(tmp_path, samples=4, bytes=len(WHOLE))
    assert scan(WHOLE).tally.faults == []
    write_index(tmp_path, samples=1000, bytes=2)
    reason = f"index.json says 1,000 samples, read 4; index.json says 2 bytes, read {len(WHOLE):,}"
    assert [fault.reason for fault in scan(WHOLE).tally.faults] == [reason]


def test_damage_and_a_missing_count_are_one_fault(scan, tmp_path):
    write_index(tmp_path, samples=4)
    assert len(scan(WHOLE[:2000]).tally.faults) == 1


@pytest.mark.parametrize("index", ["{", "[]", '{"a.tar": 3}', '{"a.tar": {"samples": "four"}}'])
def test_an_unreadable_index_is_a_fault(scan, tmp_path, index):
    (tmp_path / "index.json").write_text(index)
    assert scan(WHOLE).outcome == (KEYS, {}, 1)


def test_the_summary_counts_what_was_used_and_why_the_rest_was_not(scan):
    found = scan(tar_of(*FOUR, ("a.jpg", JPEG))[:-1024])
    assert found.tally.summary() == "4 samples can be used, 1 skipped (missing_text 1), 1 shard fault"


def test_samples_that_only_the_index_knows_count_as_bad(scan, tmp_path):
    write_index(tmp_path, samples=8)
    found = scan(BODY).tally
    found.check("a.tar", 0.5)
    with pytest.raises(DataError, match=r"4 of 8 samples .* behind_a_shard_fault 4 \(as .*a\.tar: ends without"):
        found.check("a.tar")


def test_a_shard_that_is_named_twice_is_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(WHOLE)
    with pytest.raises(DataError, match="named twice"):
        read_shards(tmp_path / "a.tar", tmp_path / "a.tar")


def test_a_shard_that_went_away_after_the_scan_is_an_error(scan):
    sample = scan(WHOLE).samples[0]
    os.unlink(sample.images[0].path)
    with pytest.raises(DataError, match=r"a\.tar:0.* cannot be read"):
        read_image(sample.images[0], sample.key)


def test_json_without_a_caption_is_skipped_with_the_keys_that_it_has(scan):
    found = scan(tar_of(("a.jpg", JPEG), ("a.json", b'{"text": "a", "x\\u001b": 1}')))
    assert "'text', 'x\\x1b'" in found.tally.examples["missing_text"]


@pytest.mark.parametrize(
    "bad", [("a.jpg", JPEG), ("a.1.jpg", JPEG), ("0.json", b'{"questions": [{"question": "?", "answer": ""}]}')]
)
def test_shards_that_are_read_whole_may_not_lack_anything(tmp_path, bad):
    (tmp_path / "a.tar").write_bytes(tar_of(*FOUR, ("0.cls", b"1")))
    assert len(read_whole([tmp_path / "a.tar"])) == 4
    (tmp_path / "a.tar").write_bytes(tar_of(*FOUR, bad))
    with pytest.raises(DataError, match=r"1 of \d+ (samples|questions) is unusable, the limit is 0%"):
        read_whole([tmp_path / "a.tar"])
    (tmp_path / "a.tar").write_bytes(BODY)
    with pytest.raises(DataError, match="without the end marker"):
        read_whole([tmp_path / "a.tar"])


def test_all_that_is_left_out_is_told_with_examples(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(*FOUR))
    assert report_left_out("source x", indexes_of(tmp_path / "a.tar")) is None
    questions = b'{"questions": [3]}'
    (tmp_path / "b.tar").write_bytes(tar_of(*FOUR, ("0.json", questions), ("a\x1b.jpg", JPEG))[:-1024])
    told = report_left_out("source x", indexes_of(tmp_path / "b.tar"))
    for words in ("source x", "missing_text 1 (as b.tar:a\\x1b)", "b.tar:0, question 0", "end marker"):
        assert words in told


def test_too_large_a_share_of_bad_samples_stops_with_reasons_and_examples(scan):
    found = scan(tar_of(*FOUR, ("a.jpg", JPEG))).tally
    found.check("a.tar", 0.2)
    with pytest.raises(DataError, match=r"1 of 5 .* missing_text 1 \(as a\.tar:a\)"):
        found.check("a.tar", 0.19)


def test_bad_samples_cost_no_pause(tmp_path):
    times = {}
    for name, text in {"clean": b"x", "bad": b""}.items():
        members = [(f"{n}.txt", b"x" if n % 10 else text) for n in range(2000)] + [
            (f"{n}.jpg", b"") for n in range(2000)
        ]
        (tmp_path / name).write_bytes(tar_of(*members))
        start = process_time()
        found = read_shards(tmp_path / name)
        times[name] = process_time() - start
    assert found.tally.skipped == Counter(empty_text=200)
    assert times["bad"] < 3 * times["clean"] + 1  # generous, as the machine may be busy; half a second each is 100


def test_a_key_over_many_members_costs_each_once(scan):
    start = process_time()
    found = scan(tar_of(*[("a.json", b"{}")] * 16_000))
    assert found.tally.skipped == Counter(missing_image=15_999)
    assert process_time() - start < 5  # 0.25 where each is looked at once, 12 where all before it are too


def test_the_index_is_found_by_the_shards_file_name(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({"b.tar": {"samples": 1}}))
    (tmp_path / "a.tar").write_bytes(WHOLE)
    assert read_shards(tmp_path / "a.tar").tally.faults == []
