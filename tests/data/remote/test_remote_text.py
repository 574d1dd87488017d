"""Text at an address is tokenised as the same text here is, fetched once, and refused in a sentence."""

import functools
import gzip
import hashlib
import inspect
import json
from pathlib import Path

import pytest

from arlow_vl.cli import main
from arlow_vl.data import remote
from arlow_vl.data.packing import tokenised
from arlow_vl.data.remote import PATIENCE
from arlow_vl.data.text_files import text_files
from arlow_vl.data.tokens.write import tokenize_text
from arlow_vl.data.verify_text import verify_text
from arlow_vl.errors import DataError, ResourceError
from tests.data.remote.server import SHORT
from tests.tiny_runs import sentences, tiny_tokenizer, write_image_text_recipe, write_jsonl, write_text_recipe


@pytest.fixture
def texts(tmp_path, server, cache, monkeypatch):
    """Three files, here and at `a-{0..2}.jsonl.gz`."""
    monkeypatch.setattr(remote, "PATIENCE", SHORT)
    monkeypatch.setattr(inspect.unwrap(remote.hold), "__kwdefaults__", {"cache": None, "patience": SHORT})
    (tmp_path / "texts").mkdir()
    for number in range(3):
        path = write_jsonl(tmp_path / "texts" / f"a-{number}.jsonl", sentences(60)[20 * number :][:20])
        server.files[f"/a-{number}.jsonl.gz"] = gzip.compress(path.read_bytes())
    return tmp_path / "texts"


def test_text_at_an_address_gives_the_tokens_of_the_same_text_here(texts, server, tmp_path, monkeypatch):
    monkeypatch.setitem(
        inspect.unwrap(remote.hold).__kwdefaults__, "patience", PATIENCE
    )  # a busy core may take its time
    for number, fault in enumerate([503, "cut"]):
        server.answers[f"/a-{number}.jsonl.gz"] = [fault]
    address = server.url("a-{0..2}.jsonl.gz")
    far = tokenize_text([address], tiny_tokenizer(), tmp_path / "far", workers=2)
    near = tokenize_text([texts], tiny_tokenizer(), tmp_path / "near")
    assert far.fingerprint == near.fingerprint
    assert (far.manifest.used, far.manifest.skipped) == (60, {})
    asked = len(server.asked)
    assert tokenize_text([address], tiny_tokenizer(), tmp_path / "again").fingerprint == near.fingerprint
    assert len(server.asked) == asked == 5


def test_files_stay_in_the_cache_as_long_as_they_are_read(texts, server, cache):
    files = text_files([server.url("a-{0..2}.jsonl.gz")])
    assert not cache._make_room(cache.most_bytes)
    assert all(file.is_file() for file in files)
    del files
    assert cache._make_room(cache.most_bytes)


def test_a_text_run_starts_from_addresses_and_goes_on_without_them(texts, server, cache, tmp_path):
    server.files["/v.txt"] = " ".join(sentences(30)).encode()
    recipe = write_text_recipe(
        tmp_path, train_text=server.url("a-{0..2}.jsonl.gz?token=secret"), validation_text=server.url("v.txt")
    )
    run = ["fit", "--config", str(recipe), "--run.max_steps", "4"]
    assert main(run) == 0
    asked = len(server.asked)
    server.files.clear()
    assert cache._make_room(cache.most_bytes)  # what was fetched has left
    assert main([*run, "--run_dir", str(tmp_path / "other")]) == 0
    assert len(server.asked) == asked


def test_a_source_of_text_beside_images_may_lie_at_an_address(texts, server, tmp_path):
    run = {"max_steps": 3, "validate_every": 3, "checkpoint_every": 3, "validation_samples": 2, "threads": 1}
    images = {"name": "captions", "data": str(Path("tests/samples/captions/train-*.tar").absolute()), "weight": 1.0}
    replay = {"name": "replay", "data": server.url("a-0.jsonl.gz"), "kind": "text", "weight": 1.0}
    packing = {"row_tokens": 128, "row_images": 4, "rows_per_batch": 2}
    recipe = write_image_text_recipe(tmp_path, run=run, cache_features=None, sources=[images, replay], packing=packing)
    assert main(["fit", "--config", str(recipe)]) == 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert {key.partition(":")[0] for step in steps for key in step["keys"]} == {"captions", "replay"}


@pytest.mark.parametrize("name", ["a-0.jsonl.gz", "a.jsonl"])
def test_a_page_that_came_for_a_text_is_asked_for_again(texts, server, cache, tmp_path, capsys, name):
    server.files["/a.jsonl"] = (texts / "a-0.jsonl").read_bytes()
    server.answers[f"/{name}"] = [page := b"<html>Please log in</html>", page]
    assert main(["data", "verify", server.url(name), "--workers", "1", "--format", "text"]) == 3
    with pytest.raises(DataError):
        tokenize_text([server.url(name)], tiny_tokenizer(), tmp_path / "out")
    assert tokenize_text([server.url(name)], tiny_tokenizer(), tmp_path / "out").manifest.used == 20
    assert server.count(name) == 3


UTF16 = '{"text": "a"}'.encode("utf-16")


def test_text_that_is_refused_as_a_whole_is_told_by_its_address_and_leaves_the_cache(texts, server, cache, tmp_path):
    server.files["/a.jsonl"] = UTF16
    tokenize = functools.partial(tokenize_text, tokenizer=tiny_tokenizer(), folder=tmp_path / "out")
    for read in (tokenize, verify_text):
        with pytest.raises(DataError) as fault:
            read([server.url("a.jsonl")])
        assert str(fault.value) == f"{server.url('a.jsonl')}: is UTF-16 text; save it as UTF-8"
        assert not list(cache.folder.rglob("a.jsonl"))


def test_what_is_wrong_with_one_file_costs_no_other(texts, server, cache):
    server.files |= {"/21.jsonl": UTF16, "/1.jsonl": (texts / "a-0.jsonl").read_bytes()}
    with pytest.raises(DataError, match=r"/21\.jsonl: is UTF-16"):
        verify_text([server.url("1.jsonl"), server.url("21.jsonl")])
    assert [path.name for path in cache.folder.rglob("*.jsonl")] == ["1.jsonl"]


def test_a_file_stays_in_the_cache_where_a_limit_or_the_folder_for_tokens_is_what_is_wrong(
    texts, server, cache, tmp_path
):
    server.files["/a.jsonl"] = (texts / "a-0.jsonl").read_bytes() + 9 * b"{}\n"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.jsonl").touch()
    for folder, sentence in (("out", r"9 of 29 lines are unusable"), ("full", r"holds other files \(a\.jsonl\)")):
        with pytest.raises(DataError, match=sentence):
            tokenize_text([server.url("a.jsonl")], tiny_tokenizer(), tmp_path / folder)
    text = tokenize_text([server.url("a.jsonl")], tiny_tokenizer(), tmp_path / "out", max_bad_fraction=0.5)
    assert text.manifest.used == 20 and server.count("a.jsonl") == 1


def test_half_of_a_text_leaves_the_cache_though_the_limit_allows_it(texts, server, cache, tmp_path):
    server.files["/a.jsonl.gz"] = server.files["/a-0.jsonl.gz"][:-12]
    text = tokenize_text([server.url("a.jsonl.gz")], tiny_tokenizer(), tmp_path / "out", max_bad_fraction=0.5)
    assert text.manifest.skipped == {"truncated_file": 1}
    assert not list(cache.folder.rglob("a.jsonl.gz"))


def test_verify_reads_text_at_an_address(texts, server, capsys):
    server.files["/bad.txt"] = b"\xff"
    assert main(["data", "verify", server.url("a-{0..2}.jsonl.gz"), "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith("60 documents can be used, 0 skipped")
    assert main(["data", "verify", server.url("bad.txt"), "--workers", "1"]) == 3
    assert "bad.txt: document 1: not_utf8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "sentence"),
    {
        "gone.jsonl?token=secret": r"gone\.jsonl: there is no such file \(1 try in .*see whether the address is right",
        "*.jsonl.gz": r"web servers give no list; write a range as",
        "texts/": r"names no file; write the address of one, or a range or wildcard",
        "tokens/manifest.json": r"tokens are mapped, not fetched; copy their folder to this machine",
        f"a-0.jsonl.gz#sha256={'0' * 64}": r"sent other bytes than its index or address says",
        "empty.jsonl": r"empty\.jsonl holds no document; name text that is not empty",
    }.items(),
)
def test_what_cannot_be_read_is_one_sentence(texts, server, tmp_path, name, sentence):
    server.files["/empty.jsonl"] = b""
    with pytest.raises(DataError, match=sentence) as fault:
        tokenised(server.url(name), tiny_tokenizer(), tmp_path / "packed")
    assert "secret" not in str(fault.value)


@pytest.mark.parametrize("source", ["pipe:cat a.jsonl", "nonsense://h/a.jsonl"])
def test_what_is_no_address_is_told_before_anything_is_loaded(tmp_path, capsys, source):
    assert (
        main(["data", "tokenize", source, "--tokenizer", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 3
    )
    assert "is not read from" in (err := capsys.readouterr().err) or "no command is run" in err


def test_a_cache_that_cannot_hold_the_text_is_one_sentence(texts, server, tmp_path, monkeypatch):
    monkeypatch.setenv("ARLOW_DATA_CACHE_GIB", str(len(server.files["/a-0.jsonl.gz"]) * 1.5 / 2**30))
    monkeypatch.setitem(vars(PATIENCE), "retry_seconds", 0.5)
    with pytest.raises(
        ResourceError, match=r"no room for the .* bytes of a-1\.jsonl\.gz, .* raise ARLOW_DATA_CACHE_GIB"
    ):
        tokenize_text([server.url("a-{0..2}.jsonl.gz")], tiny_tokenizer(), tmp_path / "out")


def test_a_file_address_is_the_file(texts, tmp_path):
    address = f"file://{texts}/a-0.jsonl"
    assert text_files([address]) == [texts / "a-0.jsonl"]
    text = tokenised(address, tiny_tokenizer(), tmp_path / "packed")
    assert text.manifest.sources[0].sha256 == hashlib.sha256((texts / "a-0.jsonl").read_bytes()).hexdigest()
