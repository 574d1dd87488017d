"""Readers under random outside data: no traceback, and the counts add up to what went in."""

import json
import random
from collections import Counter

import pytest

from arlow_vl.data.shard_samples import BadSample, ReaderLimits, split_name
from arlow_vl.data.shards import gather_shard
from arlow_vl.data.tar_members import TarDamage, tar_members
from arlow_vl.data.text import LineTally, read_jsonl
from arlow_vl.data.verify import verify_sources
from tests.data.conftest import read_shards
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


def check_counts(samples, bad: list[BadSample], ignored: Counter[str], members: int) -> None:
    used = sum(sample.members for sample in samples)
    assert used + sum(one.members for one in bad) + ignored.total() == members
    assert len({sample.key for sample in samples}) == len(samples)


@pytest.mark.parametrize("seed", range(150))
def test_every_member_is_of_a_sample_or_skipped_or_ignored_or_behind_a_fault(tmp_path, seed):
    dice, path = random.Random(seed), tmp_path / "a.tar"
    whole = b"".join(random_member(dice) for _ in range(dice.randint(0, 40)))
    path.write_bytes(mutated(dice, whole + END_MARKER))
    found, members, damage = gather_shard(path)
    assert (members, bool(damage)) == count_members(path)
    check_counts(*found, members)
    for sample in found.samples:
        assert all(split_name(image.name)[0] == sample.key for image in sample.images)
        assert sample.caption or sample.questions or sample.texts
        assert all(part for question in sample.questions for part in question)
    verified = verify_sources([path])
    tally = verified.tally
    assert verified.members == members
    check_counts(verified.samples, tally.bad, tally.ignored, members)
    assert tally.samples + tally.skipped.total() == len(found.samples) + sum(bad.count for bad in found.bad)


@pytest.mark.parametrize("seed", range(50))
def test_the_counts_add_up_where_a_shard_is_over_its_limits(tmp_path, seed):
    dice, path = random.Random(seed), tmp_path / "a.tar"
    path.write_bytes(b"".join(random_member(dice) for _ in range(40)) + END_MARKER)
    limits = ReaderLimits(max_held_bytes=dice.randint(500, 30_000), max_members=dice.randint(1, 60))
    found, members, damage = gather_shard(path, limits)
    assert damage or members == count_members(path)[0]
    check_counts(*found, members)


@pytest.mark.parametrize("seed", range(50))
def test_samples_in_any_order_are_whole_or_counted(tmp_path, seed):
    dice, path = random.Random(seed), tmp_path / "a.tar"
    keys = [str(n) for n in range(20)]
    members = samples(*keys)
    dice.shuffle(members)
    path.write_bytes(tar_of(*members))
    assert sorted(read_shards(path).keys) == sorted(keys)


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
    found = read_shards(path)
    bad = found.tally.bad_questions
    assert found.keys == ["a"]
    if bad and bad[0].reason != "questions_not_a_list":
        assert found.tally.questions + len(bad) == 5
