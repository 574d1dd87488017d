"""A file of answers is whole whenever it is looked at, and is gone on with only as it was begun."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.errors import DataError
from arlow_vl.serving.answer_file import AnswerFile, left_to_do

ASKED = {"model": "9f86d0" * 10, "question": None, "decoding": {"num_beams": 1, "stop": ("a",)}}


def lines(*names):
    return [{"image": name, "caption": "a fox"} for name in names]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "captions.jsonl"


@pytest.fixture
def begun(path):
    with AnswerFile(path, ASKED) as file:
        file.add(lines("a.jpg", "b.jpg"))
    return path


def test_what_is_in_the_file_is_not_left_to_do(begun):
    with AnswerFile(begun, ASKED) as file:
        assert left_to_do(["b.jpg", "c.jpg", "c.jpg", "a.jpg", "d.jpg"], file.done) == ["c.jpg", "d.jpg"]
        file.add(lines("c.jpg"))
        assert "c.jpg" in file.done
    assert [json.loads(line)["image"] for line in begun.read_text().splitlines()] == ["a.jpg", "b.jpg", "c.jpg"]


@given(st.integers(0, 200))
def test_wherever_a_kill_cuts_the_file_it_is_gone_on_with(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "captions.jsonl"
    with AnswerFile(path, ASKED) as file:
        file.add(lines("a.jpg", "b.jpg", "ü\ud800.jpg"))
    whole = path.read_bytes()
    os.truncate(path, min(cut, len(whole)))
    with AnswerFile(path, ASKED) as file:
        left = left_to_do(["a.jpg", "b.jpg", "ü\ud800.jpg"], file.done)
        file.add(lines(*left))
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"question": "what?"}, r"written in another way \(question none, now what\?\)"),
        ({"decoding": {"num_beams": 3, "stop": ["a"]}}, r"\(num_beams 1, now 3\)"),
        ({"model": "other"}, r"\(model 9f86d09f86d0\.\.\., now other\)"),
    ],
)
def test_answers_that_were_asked_for_in_another_way_are_not_mixed(begun, change, sentence):
    before = begun.read_bytes()
    with pytest.raises(DataError, match=sentence):
        AnswerFile(begun, ASKED | change)
    assert begun.read_bytes() == before


@pytest.mark.parametrize("content", [None, "", "[]", "{", "\xff"])
def test_a_file_that_does_not_say_how_it_was_written_is_left_alone(begun, content):
    meta = begun.with_name(begun.name + ".meta.json")
    meta.unlink() if content is None else meta.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="does not say how it was written; name another file, or remove it"):
        AnswerFile(begun, ASKED)


@pytest.mark.parametrize("line", ["x", "[]", '{"caption": "a"}', '{"image": 3}', ""])
def test_a_line_that_is_no_answer_is_named(begun, line):
    begun.write_text(begun.read_text() + line + "\n")
    with pytest.raises(DataError, match="line 3 is not an answer about an image"):
        AnswerFile(begun, ASKED)


def test_two_processes_do_not_write_one_file(begun):
    with AnswerFile(begun, ASKED), pytest.raises(DataError, match="is being written by another process"):
        AnswerFile(begun, ASKED)
    AnswerFile(begun, ASKED).__exit__()


def test_a_full_disk_leaves_whole_lines(begun):
    import resource

    before = begun.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with AnswerFile(begun, ASKED) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        try:
            with pytest.raises(OSError, match=r"captions\.jsonl"):
                file.add(lines("c.jpg", "d.jpg"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert begun.read_bytes() == before


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/full"), Path("/dev/null")):
        with pytest.raises(DataError, match=f"{path} is a device or a pipe"):
            AnswerFile(path, ASKED)


def test_what_a_kill_left_of_the_meta_file_goes(path):
    path.parent.mkdir()
    left = path.with_name(f".{path.name}.meta.json.0123abcd.partial")
    left.write_text("{")
    with AnswerFile(path, ASKED):
        assert not left.exists()


def test_a_file_system_without_locks_takes_answers_and_says_that_it_has_none(path, without_locks, capsys):
    for name in ("a.jpg", "b.jpg"):
        with AnswerFile(path, ASKED) as file:
            file.add(lines(name))
    assert [json.loads(line)["image"] for line in path.read_text().splitlines()] == ["a.jpg", "b.jpg"]
    assert capsys.readouterr().err.startswith(f"warning: {path} is on a file system without locks; make sure")
