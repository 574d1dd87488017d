"""Readers under random outside data: no traceback, and the counts add up to what went in."""

import json
import random

import pytest

from arlow_vl.data.shard_samples import ReaderLimits, split_name
from arlow_vl.data.shards import ShardScan, scan_shard
from arlow_vl.data.tar_members import TarDamage, tar_members
from arlow_vl.data.text import LineTally, read_jsonl
from arlow_vl.data.verify import Verified, verify_sources
from tests.outside_data import END_MARKER, JPEG, samples, tar_header, tar_member, tar_of

KEYS = ["a", "b", "c", "photo", "v1.0/a", ".a", "__MACOSX/a", "../a", "", "a\x1b", "é"]
EXTENSIONS = ["", *"jpg JPG png txt json cls mask.png 0.jpg 0.txt 1.json jpg.txt tar.gz.jpg . .jpg".split()]
FIELDS = [
    b"{}",
    b"{",
    b"[]",
    b'{"caption": "x"}',
    b'{"caption": 3, "source": [1]}',
    b'{"caption": "x", "questions": 3}',
    b'{"caption": "x", "questions": [{"question": "?", "answer": "yes"}, {"question": 3}, [], null]}',
    b'{"caption": "\\ud800"}',
]
IMAGES = [JPEG, JPEG, JPEG[:-9], b"", b"x"]
TEXTS = [b"x", b"x", b"", b"a\0b", b"\xff"]
LINES = [
    b'{"text": "x"}',
    b'{"text": 3}',
    b'{"content": "x"}',
    b"{",
    b"[" * 9000,
    b"",
    b" ",
    b"\xff",
    b'{"text": ""}',
    b"3",
]


def random_member(dice: random.Random) -> bytes:
    extension = dice.choice(EXTENSIONS)
    name = f"{dice.choice(KEYS)}{'.' if extension else ''}{extension}"
    if dice.random() < 0.05:
        return tar_header(name or "x", 0, dice.choice([b"1", b"2", b"3", b"5", b"6"]))
    last = name.lower().rpartition(".")[2]
    return tar_member(name, dice.choice({"txt": TEXTS, "json": FIELDS}.get(last, IMAGES)))


def mutated(dice: random.Random, data: bytes) -> bytes:
    data = bytearray(data)
    for _ in range(dice.randint(0, 2)):
        place = dice.randrange(len(data))
        match dice.choice(["flip", "cut", "zeros", "insert"]):
            case "flip":
                data[place] ^= 1 << dice.randrange(8)
            case "cut":
                del data[place + 1 :]
            case "zeros":
                data[place : place + 512] = bytes(len(data[place : place + 512]))
            case "insert":
                data[place:place] = dice.randbytes(dice.randint(1, 600))
    return bytes(data)


def count_members(path) -> tuple[int, bool]:
    """Members that a walk finds, and whether it met damage."""
    members = 0
    with open(path, "rb") as file:
        try:
            for _ in tar_members(file.fileno()):
                members += 1
        except TarDamage:
            return members, True
    return members, False


def check_counts(found: ShardScan | Verified, members: int) -> None:
    assert found.members == members
    used = sum(sample.members for sample in found.samples)
    assert used + sum(bad.members for bad in found.bad) + found.ignored.total() == members
    assert sum(found.skipped.values()) == sum(bad.count for bad in found.bad)
    assert len({sample.key for sample in found.samples}) == len(found.samples)


@pytest.mark.parametrize("seed", range(150))
def test_every_member_is_of_a_sample_or_skipped_or_ignored_or_behind_a_fault(tmp_path, seed):
    dice, path = random.Random(seed), tmp_path / "a.tar"
    whole = b"".join(random_member(dice) for _ in range(dice.randint(0, 40)))
    path.write_bytes(mutated(dice, whole + END_MARKER))
    members, is_damaged = count_members(path)
    found = scan_shard(path)
    check_counts(found, members)
    assert bool(found.faults) == is_damaged
    for sample in found.samples:
        assert split_name(sample.image_name)[0] == sample.key
        assert sample.text
        assert all(part for question in sample.questions for part in question)
    verified = verify_sources([path])
    check_counts(verified, members)
    assert len(verified.samples) + verified.skipped.total() == len(found.samples) + found.skipped.total()


@pytest.mark.parametrize("seed", range(50))
def test_the_counts_add_up_where_a_shard_is_over_its_limits(tmp_path, seed):
    dice, path = random.Random(seed), tmp_path / "a.tar"
    path.write_bytes(b"".join(random_member(dice) for _ in range(40)) + END_MARKER)
    limits = ReaderLimits(max_held_bytes=dice.randint(500, 30_000), max_members=dice.randint(1, 60))
    found = scan_shard(path, limits)
    assert found.faults or found.members == count_members(path)[0]
    check_counts(found, found.members)


@pytest.mark.parametrize("seed", range(50))
def test_samples_in_any_order_are_whole_or_counted(tmp_path, seed):
    dice, path = random.Random(seed), tmp_path / "a.tar"
    keys = [str(n) for n in range(20)]
    members = samples(*keys)
    dice.shuffle(members)
    path.write_bytes(tar_of(*members))
    assert sorted(scan_shard(path).keys) == sorted(keys)


@pytest.mark.parametrize("seed", range(150))
def test_every_line_is_used_or_skipped_or_blank(tmp_path, seed):
    dice, path = random.Random(seed), tmp_path / "a.jsonl"
    path.write_bytes(mutated(dice, b"\n".join(dice.choice(LINES) for _ in range(dice.randint(1, 30))) + b"\n"))
    lines = LineTally()
    texts = list(read_jsonl(path, lines))
    written = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    assert lines.used == len(texts)
    assert lines.used + lines.skipped.total() == len(written)
    lines.report(path, 1.0)


@pytest.mark.parametrize("seed", range(100))
def test_no_questions_in_json_are_a_traceback(tmp_path, seed):
    dice, path = random.Random(seed), tmp_path / "a.tar"
    values = [None, True, 3, -1.5, "x", "", [], {}, ["x"], {"question": "?"}, "a\0", "\ud800"]

    def value(depth: int = 0):
        if depth < 2 and dice.random() < 0.3:
            return {key: value(depth + 1) for key in dice.sample(["question", "answer", "kind", "x"], 3)}
        return dice.choice(values)

    entries = [value() for _ in range(5)]
    fields = json.dumps({"questions": entries if dice.random() < 0.9 else value()})
    path.write_bytes(tar_of(*samples("a"), ("a.json", fields.encode())))
    found = scan_shard(path)
    assert found.keys == ["a"]
    if found.bad_questions and found.bad_questions[0].reason != "questions_not_a_list":
        assert len(found.samples[0].questions) + len(found.bad_questions) == 5
