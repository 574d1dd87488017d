"""quarantine.jsonl: a line for each unusable sample, once, whoever meets it and however often a run is killed."""

import json
import multiprocessing
import os
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data import quarantine as quarantining
from arlow_vl.data.bad_items import Fault, TextError
from arlow_vl.data.quarantine import Quarantine
from vision.decoding.image import ImageError


def fault(source: str, key: str, *, epoch: int = 0, detail: str = "cannot be decoded") -> Fault:
    return Fault.of(source, epoch, ImageError(key, "truncated", detail))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_source_key_reason_and_detail(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    quarantine.add(fault("captions", "a.tar:7"))
    quarantine.add(Fault.of("chats", 0, TextError("b.tar:1?2", "text_without_room", "the prompt has 90 tokens")))
    assert lines_of(quarantine.path) == [
        {"source": "captions", "key": "a.tar:7", "reason": "truncated", "detail": "cannot be decoded"},
        {"source": "chats", "key": "b.tar:1?2", "reason": "text_without_room", "detail": "the prompt has 90 tokens"},
    ]


def test_no_file_without_a_bad_sample(tmp_path):
    Quarantine(tmp_path / "quarantine.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_sample_has_one_line_in_every_epoch_and_after_every_start(tmp_path):
    for start in range(3):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        for epoch in range(3):
            for key in ("a", "b"):
                quarantine.add(fault("s", key, epoch=epoch, detail=f"{start} {epoch}"))
    assert [(line["key"], line["detail"]) for line in lines_of(quarantine.path)] == [("a", "0 0"), ("b", "0 0")]


@given(st.lists(st.tuples(st.sampled_from("st"), st.text(max_size=20))), st.data())
@settings(max_examples=30)
def test_a_kill_at_any_byte_loses_and_doubles_nothing(tmp_path_factory, names, data):
    path = tmp_path_factory.mktemp("run") / "quarantine.jsonl"
    first = Quarantine(path)
    for source, key in names:
        first.add(fault(source, key))
    if path.exists():
        os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
    again = Quarantine(path)
    for source, key in names:
        again.add(fault(source, key))
    found = [(line["source"], line["key"]) for line in lines_of(path)] if path.exists() else []
    assert sorted(found) == sorted(set(names))


def test_the_file_is_bounded_and_says_where_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(quarantining, "MOST_LINES", 5)
    for _ in range(2):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        for number in range(20):
            quarantine.add(fault("s", f"{'k' * 5000}{number}" if number == 3 else str(number), detail="d" * 5000))
    *lines, last = lines_of(quarantine.path)
    assert [line["key"][:5] for line in lines] == ["0", "1", "2", "kkkkk", "4"]
    assert "arlow data verify" in last["more"]
    assert quarantine.path.stat().st_size < 5 * 3000


def test_names_from_outside_stay_on_their_line(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    quarantine.add(fault("s", "a\nb\x1b\ud800\u2028"))
    assert quarantine.path.read_bytes().count(b"\n") == 1
    assert quarantine.path.read_bytes().isascii()
    assert lines_of(quarantine.path)[0]["detail"] == "cannot be decoded"


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "quarantine.jsonl").mkdir()
    with pytest.raises(OSError, match=r"quarantine\.jsonl"):
        Quarantine(tmp_path / "quarantine.jsonl").add(fault("s", "a"))


def add_all(path: Path, keys: str) -> None:
    quarantine = Quarantine(path)
    for key in keys:
        quarantine.add(fault("s", key))


def test_processes_that_meet_the_same_samples_write_them_once(tmp_path):
    path, context = tmp_path / "quarantine.jsonl", multiprocessing.get_context("fork")
    keys = string.ascii_letters
    writers = [context.Process(target=add_all, args=(path, order)) for order in (keys, keys[::-1], keys[20:])]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(line["key"] for line in lines_of(path)) == sorted(keys)


def test_a_file_system_without_locks_takes_lines(tmp_path, without_locks):
    for _ in range(2):
        Quarantine(tmp_path / "quarantine.jsonl").add(fault("s", "a"))
    assert [line["key"] for line in lines_of(tmp_path / "quarantine.jsonl")] == ["a"]
