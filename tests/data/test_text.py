import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arlow_vl.data.text import LineTally, Unusable, clean_caption, json_memory, parse_object, read_jsonl
from arlow_vl.errors import DataError


@pytest.fixture
def read(tmp_path):
    """Reads the bytes of a file of JSON lines: its texts, and what was skipped."""

    def read_bytes(data: bytes, **limits) -> tuple[list[str], dict[str, int]]:
        (tmp_path / "a.jsonl").write_bytes(data)
        lines = LineTally()
        return list(read_jsonl(tmp_path / "a.jsonl", lines, **limits)), dict(lines.skipped)

    return read_bytes


def test_each_line_gives_the_string_under_text(read):
    assert read(b'{"text": "one", "source": "x"}\n{"text": " two\\n"}') == (["one", " two\n"], {})


def test_blank_lines_are_ignored_and_not_counted(read):
    assert read(b'\n{"text": "one"}\r\n \t\n\n') == (["one"], {})


def test_a_byte_order_mark_is_dropped(read):
    assert read(b'\xef\xbb\xbf{"text": "one"}\n') == (["one"], {})


BAD_LINES = {
    b'{"text": "one"': "bad_json",
    b'["text"]': "bad_json",
    b'"text"': "bad_json",
    b"NaN": "bad_json",
    b"[" * 100_000: "bad_json",
    b'{"text": 1%s}' % (b"0" * 5000): "bad_json",
    b'{"text": 3}': "missing_text",
    b'{"text": null}': "missing_text",
    b'{"Text": "one"}': "missing_text",
    b'{"text": "caf\xe9"}': "not_utf8",
    b'{"text": "a\\u0000b"}': "nul_in_text",
    b'{"text": "\\ud83d"}': "lone_surrogate",
    b'{"text": "\\udE00\\uD83D"}': "lone_surrogate",
    b'{"text": " \\n"}': "empty_text",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_skipped_and_counted_by_reason(read, line):
    assert read(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n') == (["one", "two"], {BAD_LINES[line]: 1})


def test_a_whole_surrogate_pair_is_a_character(read):
    assert read(b'{"text": "\\ud83d\\ude00"}') == (["\U0001f600"], {})


def test_half_a_pair_beside_the_text_does_no_harm(read):
    assert read(b'{"text": "one", "title": "\\ud83d"}') == (["one"], {})


def test_special_token_strings_are_plain_text(read):
    assert read(b'{"text": "<|endoftext|></s>"}') == (["<|endoftext|></s>"], {})


def test_the_longest_allowed_line_is_read_and_one_byte_more_is_skipped(read):
    line = b'{"text": "aaaa"}'
    assert read(line + b"\n" + line, max_line_bytes=len(line)) == (["aaaa", "aaaa"], {})
    assert read(line + b"\n" + line, max_line_bytes=len(line) - 1) == ([], {"line_too_long": 2})


def test_a_giant_line_is_not_held_in_memory(read):
    data = b'{"text": "one"}\n{"text": "' + b"a" * 20_000_000 + b'"}\n{"text": "two"}\n'
    tracemalloc.start()
    result = read(data, max_line_bytes=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result == (["one", "two"], {"line_too_long": 1})
    assert peak < 10_000_000  # it is read by 1 MiB


@pytest.mark.parametrize("raw", [b"[" + b"[]," * 3_000_000 + b"0]", b'"' + b'\\"' * 3_000_000 + b"[" * 3_000_000])
def test_json_that_would_take_too_much_memory_is_refused_before_it_is_parsed(raw):
    with pytest.raises(Unusable, match="bad_json"):
        parse_object(raw)


def test_commas_inside_a_string_weigh_nothing():
    assert json_memory(b'{"a": "%s"}' % (b',[{\\":' * 1000)) < 6500


def test_a_missing_file_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl.*arlow data fetch"):
        next(read_jsonl(tmp_path / "gone.jsonl", LineTally()))


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        next(read_jsonl(tmp_path / "a.jsonl", LineTally()))


@settings(max_examples=200)
@given(st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_caption_is_clean_utf8_or_unusable(raw):
    try:
        text = clean_caption(raw)
    except Unusable:
        return
    assert text == clean_caption(text) != ""
    assert "\0" not in text.encode().decode()


JSON_VALUES = st.recursive(
    st.none() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON_VALUES)
def test_any_line_gives_its_text_or_is_counted(read, value):
    texts, skipped = read(f"{json.dumps(value)}\n{json.dumps({'text': value})}\n".encode())
    assert len(texts) + sum(skipped.values()) == 2


@pytest.fixture
def tally(tmp_path):
    """Reads the bytes of a file of JSON lines and gives the counts and the file."""

    def tally_bytes(data: bytes) -> tuple[LineTally, Path]:
        path, lines = tmp_path / "a.jsonl", LineTally()
        path.write_bytes(data)
        list(read_jsonl(path, lines))
        return lines, path

    return tally_bytes


def test_skipped_lines_are_told_with_reasons_and_the_first_line_of_each(tally, capsys):
    lines, path = tally(b'{"text": "one"}\n\nbroken\n{"text": ""}\nbroken\n' + b'{"text": "one"}\n' * 7)
    lines.report(path, 0.3)
    assert (
        f"{path}: 3 of 11 lines are skipped: bad_json 2 (as line 3), empty_text 1 (as line 4)"
        in capsys.readouterr().err
    )


def test_too_large_a_share_of_bad_lines_is_an_error(tally):
    lines, path = tally(b"broken\n" * 450 + b'{"text": "one"}\n' * 50)
    lines.report(path, 0.9)
    with pytest.raises(DataError, match=r"a\.jsonl: 450 of 500 lines are unusable, the limit is 10%: .*as line 1\)"):
        lines.report(path, 0.1)


def test_whole_text_is_told_nothing_of(tally, capsys):
    lines, path = tally(b'{"text": "one"}\n')
    lines.report(path, 0.0)
    assert capsys.readouterr().err == ""


def test_lines_without_text_are_told_with_the_keys_that_they_have(tally):
    lines, path = tally(b'{"content": "one", "id\\u001b": 1}\n{}\n')
    with pytest.raises(DataError, match=r"missing_text 2 \(as line 1, which has the keys 'content', 'id\\x1b'.*'text'"):
        lines.report(path, 0.1)
