"""Text becomes shards of tokens: the same ones however it is interrupted and by however many processes."""

import hashlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arlow_vl.data import processes
from arlow_vl.data.packing import PackedRows, pack_documents
from arlow_vl.data.tokens import shards, write
from arlow_vl.data.tokens.manifest import tokenizer_hash
from arlow_vl.data.tokens.plan import TokenizePlan
from arlow_vl.data.tokens.reader import TokenizedText
from arlow_vl.data.tokens.shards import TokenLimits
from arlow_vl.data.tokens.write import tokenize_text
from arlow_vl.errors import CheckpointError, DataError, ResourceError
from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer
from tests.tiny_runs import sentences, tiny_tokenizer, write_jsonl

BOS, EOS = 1, 2
SMALL = TokenLimits(part_bytes=900, shard_tokens=100)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts").mkdir()
    write_jsonl(tmp_path / "texts" / "b.jsonl", sentences(40)[:30])
    write_jsonl(tmp_path / "texts" / "c.jsonl", sentences(40)[30:])
    return tmp_path / "texts"


def ids(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_documents_and_their_stream_are_read_back(tmp_path, texts):
    text = tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    expected = [ids(sentence) for sentence in sentences(40)]
    assert len(text.manifest.shards) > 5
    assert [text.ids(i).tolist() for i in range(len(text))] == expected
    assert [text.length(i) for i in range(len(text))] == list(map(len, expected))
    stream = [token for document in expected for token in (BOS, *document, EOS)]
    assert text.stream(0, text.num_tokens).tolist() == stream
    assert text.stream(95, 330).tolist() == stream[95:330]
    assert text.stream(7, 7).tolist() == []
    assert text.stream(0, 3).dtype == np.uint16
    with pytest.raises(IndexError):
        text.ids(40)


def test_documents_begin_with_eos_where_there_is_no_bos(tmp_path, texts):
    tokenizer = train_tokenizer(sentences(50), vocab_size=300)
    tokenizer.bos_token = None
    text = tokenize_text([texts], tokenizer, tmp_path / "out", limits=SMALL)
    assert text.stream(0, text.length(0) + 2).tolist() == [EOS, *ids(sentences(40)[0]), EOS]
    tokenizer.eos_token = None
    with pytest.raises(CheckpointError, match="names no eos_token, so no document would end; name one"):
        tokenize_text([texts], tokenizer, tmp_path / "other", limits=SMALL)


def test_a_large_vocabulary_takes_four_bytes(tmp_path, texts):
    tokenizer = train_tokenizer(sentences(50), vocab_size=300)
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<{i}>" for i in range(2**16)]})
    assert tokenize_text([texts], tokenizer, tmp_path / "out").stream(0, 3).dtype == np.uint32


@pytest.mark.parametrize("max_tokens", [1, 99, 100, 101, 350, 10**6])
def test_max_tokens_takes_the_shortest_beginning_of_whole_documents(tmp_path, texts, max_tokens):
    lengths = np.cumsum([len(ids(sentence)) + 2 for sentence in sentences(40)])
    documents = min(40, int(np.searchsorted(lengths, max_tokens)) + 1)
    whole = tokenize_text([texts], tiny_tokenizer(), tmp_path / "whole", limits=SMALL)
    limited = tokenize_text([texts], tiny_tokenizer(), tmp_path / "cut", limits=replace(SMALL, max_tokens=max_tokens))
    for text in (whole, limited):
        facts = PackedRows(text, 2, max_tokens).facts
        assert (facts.documents, facts.tokens) == (documents, lengths[documents - 1])
        assert facts.utf8_bytes == sum(len(sentence.encode()) for sentence in sentences(40)[:documents])
        assert facts.read_to_end == (max_tokens == 10**6)


def test_the_manifest_tells_what_was_read(tmp_path, texts):
    with open(texts / "c.jsonl", "a") as file:
        file.write('broken\n{"text": 3}\n')
    manifest = json.loads(
        (tokenize_text([texts], tiny_tokenizer(), tmp_path / "out").folder / "manifest.json").read_text()
    )
    assert manifest["documents"] == manifest["used"] == 40
    assert manifest["utf8_bytes"] == sum(len(sentence) for sentence in sentences(40))
    assert manifest["skipped"] == {"bad_json": 1, "missing_text": 1}
    assert manifest["examples"]["bad_json"] == "c.jsonl: line 11"
    for source, name in zip(manifest["sources"], ("b.jsonl", "c.jsonl"), strict=True):
        data = (texts / name).read_bytes()
        assert (source["size"], source["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_several_processes_write_the_same_files(tmp_path, texts):
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "one", limits=SMALL)
    seen = []
    tokenize_text(
        [texts], tiny_tokenizer(), tmp_path / "three", workers=3, progress=lambda *done: seen.append(done), limits=SMALL
    )
    assert files(tmp_path / "one") == files(tmp_path / "three")
    total = sum(path.stat().st_size for path in texts.iterdir())
    assert seen[-1] == (total, total)
    assert [name for name in files(tmp_path / "one") if name.endswith(".json")] == ["manifest.json"]


class Stop(Exception):
    """What ends a run in the tests."""


@pytest.mark.parametrize("after", [1, 2, 3, 5, 9])
def test_an_interrupted_run_goes_on_and_makes_no_shard_twice(tmp_path, texts, monkeypatch, after):
    arguments = ([texts], tiny_tokenizer())
    tokenize_text(*arguments, tmp_path / "whole", limits=SMALL)
    made = []
    finish = shards.ShardWriter.finish

    def finish_or_stop(self):
        if len(made) == after:
            self.flush()
            raise Stop
        made.append(self.name)
        return finish(self)

    monkeypatch.setattr(shards.ShardWriter, "finish", finish_or_stop)
    with pytest.raises(Stop):
        tokenize_text(*arguments, tmp_path / "out", limits=SMALL)
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(DataError, match=r"holds no manifest\.json; `arlow data tokenize`"):
        TokenizedText(tmp_path / "out")
    after = 10**6
    tokenize_text(*arguments, tmp_path / "out", limits=SMALL)
    assert sorted(made) == sorted(set(made))
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert list((tmp_path / "out").glob(".*.partial")) == []


def test_a_killed_process_is_named_and_the_next_run_goes_on(tmp_path, texts, monkeypatch):
    write_part = write.write_part

    def killed(part, *rest):
        if part.path.name == "c.jsonl":
            os.kill(os.getpid(), signal.SIGKILL)
        return write_part(part, *rest)

    monkeypatch.setattr(write, "write_part", killed)
    with pytest.raises(
        ResourceError,
        match=r"the process that read .*c\.jsonl died \(exit status -9\).*run the command again to resume",
    ):
        tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", workers=2, limits=SMALL)
    monkeypatch.undo()
    text = tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", workers=2, limits=SMALL)
    assert [text.ids(i).tolist() for i in range(40)] == [ids(sentence) for sentence in sentences(40)]


def test_an_error_in_a_process_is_the_callers():
    def fail(item, tell):
        raise DataError("no good")

    with pytest.raises(DataError, match="no good"):
        list(processes.in_processes(fail, [0, 1], 2, report=lambda *told: None))


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    def work(item, tell):
        (tmp_path / str(item)).write_text(str(os.getpid()))
        while True:
            tell(0)
            time.sleep(0.01)

    def start():
        list(processes.in_processes(work, [0, 1], 2, report=lambda *told: None))

    parent = multiprocessing.get_context("fork").Process(target=start)
    parent.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(
        (tmp_path / name).is_file() and (tmp_path / name).read_text() for name in "01"
    ):
        time.sleep(0.01)
    parent.kill()
    parent.join()
    pids = [int((tmp_path / name).read_text()) for name in "01"]
    while time.monotonic() < deadline and any(map(is_alive, pids)):
        time.sleep(0.02)
    assert not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_there_is_not_made_again(tmp_path, texts, monkeypatch):
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    monkeypatch.setattr(write, "write_part", None)
    os.utime(texts / "b.jsonl", (1, 1))  # its SHA-256 is the same
    before = files(tmp_path / "out")
    text = tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    assert text.manifest.sources[0].mtime_ns == 10**9
    monkeypatch.setattr("hashlib.file_digest", None)  # from now on, nothing is hashed
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    after = files(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}


def test_a_folder_of_other_tokens_is_refused(tmp_path, texts):
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    with pytest.raises(DataError, match=r"out holds the tokens of other text, or another tokenizer's; name another"):
        tokenize_text([texts / "b.jsonl"], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    with pytest.raises(DataError, match=r"out holds the tokens of other text, or another tokenizer's"):
        tokenize_text([texts], train_tokenizer(sentences(9), 280), tmp_path / "out", limits=SMALL)
    write_jsonl(texts / "b.jsonl", ["a cat"])
    with pytest.raises(DataError, match=r"out holds the tokens of .*b\.jsonl as it was before"):
        tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)


def test_a_folder_that_holds_other_files_is_refused(tmp_path, texts):
    with pytest.raises(DataError, match=r"texts holds other files \(.\.jsonl\); name an empty folder"):
        tokenize_text([texts], tiny_tokenizer(), texts)


def test_an_unfinished_folder_with_other_settings_is_refused(tmp_path, texts, monkeypatch):
    interrupt(monkeypatch, [texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    with pytest.raises(DataError, match=r"out was begun with other text, another tokenizer or other settings"):
        tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=replace(SMALL, shard_tokens=70))


def test_the_hash_of_the_settings_is_that_of_folders_begun_by_earlier_versions(tmp_path, texts, monkeypatch):
    tokenizer = tiny_tokenizer()
    interrupt(monkeypatch, [texts], tokenizer, tmp_path / "out", limits=SMALL)
    form = {"bos_token_id": BOS, "eos_token_id": EOS, "dtype": "uint16", "shard_tokens": 100, "max_tokens": None}
    paths = [str(path.resolve()) for path in sorted(texts.iterdir())]
    settings = json.dumps([[1, tokenizer_hash(tokenizer), form, 900], paths])
    plan = TokenizePlan.read(tmp_path / "out")
    assert plan is not None and plan.settings == hashlib.sha256(settings.encode()).hexdigest()


def test_text_that_changes_while_it_is_read_is_refused_and_read_by_the_next_start(tmp_path, texts, monkeypatch):
    run = write.Job.run

    def run_and_change(*arguments):
        facts = run(*arguments)
        write_jsonl(texts / "b.jsonl", ["other"])
        return facts

    monkeypatch.setattr(write.Job, "run", run_and_change)
    with pytest.raises(DataError, match=r"b\.jsonl changed while it was read; run the command again"):
        tokenize_text([texts], tiny_tokenizer(), tmp_path / "out")
    monkeypatch.undo()
    made = parts_made(monkeypatch)
    text = tokenize_text([texts], tiny_tokenizer(), tmp_path / "out")
    assert made == ["b.jsonl"]
    assert [text.ids(i).tolist() for i in range(len(text))] == [ids(one) for one in ("other", *sentences(40)[30:])]


def test_a_part_that_changes_while_it_is_read_is_not_taken_for_finished(tmp_path, texts):
    def touch(done, total):
        os.utime(texts / "b.jsonl")

    with pytest.raises(DataError, match=r"b\.jsonl changed while it was read; run the command again"):
        tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", progress=touch)
    assert not list((tmp_path / "out").glob("*-00000.json"))
    assert len(tokenize_text([texts], tiny_tokenizer(), tmp_path / "out")) == 40


def parts_made(monkeypatch) -> list[str]:
    """Names of the files of the parts that are written from now on."""
    made, write_part = [], write.write_part

    def noting(part, *rest):
        made.append(part.path.name)
        return write_part(part, *rest)

    monkeypatch.setattr(write, "write_part", noting)
    return made


def interrupt(monkeypatch, *arguments, **options) -> None:
    """Ends before the manifest."""
    monkeypatch.setattr(write.Job, "finish", None)
    with pytest.raises(TypeError):
        tokenize_text(*arguments, **options)
    monkeypatch.undo()


@pytest.mark.parametrize("part_bytes", [900, 10**6])
def test_an_interrupted_run_reads_again_only_what_has_other_bytes(tmp_path, texts, monkeypatch, part_bytes):
    arguments, limits = ([texts], tiny_tokenizer(), tmp_path / "out"), replace(SMALL, part_bytes=part_bytes)
    interrupt(monkeypatch, *arguments, limits=limits)
    os.utime(texts / "b.jsonl", (1, 1))  # its SHA-256 is the same
    data = (texts / "c.jsonl").read_bytes()
    (texts / "c.jsonl").write_bytes(data.replace(b"a ", b"b "))
    os.utime(texts / "c.jsonl", (1, 1))
    made = parts_made(monkeypatch)
    text = tokenize_text(*arguments, limits=limits)
    assert set(made) == {"c.jsonl"}
    expected = tokenize_text([texts], tiny_tokenizer(), tmp_path / "whole", limits=limits)
    assert text.fingerprint == expected.fingerprint
    assert (text.manifest.sources, text.manifest.used) == (expected.manifest.sources, 40)


def test_an_interrupted_run_goes_on_with_text_that_has_become_more_parts(tmp_path, texts, monkeypatch):
    interrupt(monkeypatch, [texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    write_jsonl(texts / "b.jsonl", sentences(90))
    text = tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    whole = tokenize_text([texts], tiny_tokenizer(), tmp_path / "whole", limits=SMALL)
    assert files(text.folder) == files(whole.folder)


def test_too_large_a_share_of_bad_lines_is_refused_until_it_is_allowed(tmp_path, texts, monkeypatch):
    with open(texts / "c.jsonl", "a") as file:
        file.write("broken\n" * 20)
    with pytest.raises(DataError, match=r"20 of 60 lines are unusable.*bad_json 20 \(as c\.jsonl: line 11\)"):
        tokenize_text([texts], tiny_tokenizer(), tmp_path / "out")
    monkeypatch.setattr(write, "write_part", None)  # the shards are there
    assert len(tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", max_bad_fraction=0.5)) == 40
    with pytest.raises(DataError, match=r"20 of 60 lines are unusable, the limit is 20%"):  # it is done, and bad still
        tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", max_bad_fraction=0.2)


def test_text_without_a_document_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"a\.jsonl holds no document; name text that is not empty"):
        tokenize_text([tmp_path / "a.jsonl"], tiny_tokenizer(), tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), r"out lacks .*\.bin, which its manifest\.json names; copy the whole folder"),
        (lambda path: path.write_bytes(b"half"), r"\.bin has 4 bytes, not [\d,]+; copy it again"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), r"manifest\.json is damaged; remove"),
        (lambda path: change_format(path.parent), r"has format 99, not 1; remove"),
    ],
)
def test_a_damaged_folder_is_told_when_it_is_opened(tmp_path, texts, damage, sentence):
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    damage(next((tmp_path / "out").glob("*.bin")))
    with pytest.raises(DataError, match=sentence):
        TokenizedText(tmp_path / "out")


def change_format(folder: Path) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**values, "format": 99}))


def test_opening_reads_no_token(tmp_path, texts):
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    text = TokenizedText(tmp_path / "out")
    assert text._maps == {}
    text.stream(0, 10)
    assert len(text._maps) == 1


def test_rows_of_a_tokenised_folder_are_those_of_its_text(tmp_path, texts):
    path = write_jsonl(tmp_path / "all.jsonl", sentences(40))
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    one = pack_documents(path, tiny_tokenizer(), 16, tmp_path / "cache", max_tokens=400)
    other = pack_documents(tmp_path / "out", tiny_tokenizer(), 16, tmp_path / "unused", max_tokens=400)
    assert not (tmp_path / "unused").exists()
    assert [row.tolist() for row in one] == [row.tolist() for row in other]
    assert one.facts == other.facts


def test_a_tokenised_folder_of_another_tokenizer_is_refused(tmp_path, texts):
    tokenize_text([texts], train_tokenizer(sentences(9), 280), tmp_path / "out")
    with pytest.raises(DataError, match="out was made with another tokenizer; tokenise the text again"):
        pack_documents(tmp_path / "out", tiny_tokenizer(), 16, tmp_path)


def test_a_tokenised_folder_whose_text_has_changed_is_used_and_told(tmp_path, texts, capsys):
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "out")
    write_jsonl(texts / "b.jsonl", ["other"])
    pack_documents(tmp_path / "out", tiny_tokenizer(), 16, tmp_path)
    assert "b.jsonl as it was; the text has changed since" in capsys.readouterr().err


def test_a_kill_before_a_rename_keeps_nobody_out(tmp_path, texts):
    whole = tokenize_text([texts], tiny_tokenizer(), tmp_path / "whole", limits=SMALL)
    for name in (".plan.0123abcd.partial", ".manifest.json.0123abcd.partial"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("half")
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    assert files(tmp_path / "out") == files(whole.folder)
    assert list((tmp_path / "out").glob(".*.partial")) == []


def test_a_file_system_without_locks_takes_tokens_and_says_that_it_has_none(tmp_path, texts, without_locks, capsys):
    tokenize_text([texts], tiny_tokenizer(), tmp_path / "out", limits=SMALL)
    assert f"warning: {tmp_path / 'out'} is on a file system without locks" in capsys.readouterr().err
    assert len(TokenizedText(tmp_path / "out")) > 0
