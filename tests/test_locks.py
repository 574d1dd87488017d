"""Of two processes that write one model at once the second is refused, and a kill leaves nothing in the way."""

import errno
import fcntl
import signal
import stat
import sys
from pathlib import Path

import pytest

from arlow_vl.cli import main
from arlow_vl.errors import CheckpointError, DataError, ResourceError
from arlow_vl.locks import one_process, one_writer, take_lock
from arlow_vl.models.convert.gguf_writing import export_gguf
from arlow_vl.models.folder_writing import find_changes, save_folder
from arlow_vl.models.folders import load_text_model
from arlow_vl.training import export
from tests.forked import by_fork
from tests.tiny_runs import tiny_tokenizer, write_text_checkpoint

BUSY = ValueError("busy")


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_written_is_held_until_it_has_its_name(tmp_path, is_folder):
    partial = tmp_path / "deep" / ".model.partial"
    for _ in range(2):  # the second time it is there
        with one_writer(partial, is_folder=is_folder, refusal=BUSY):
            assert partial.is_dir() == is_folder
            with pytest.raises(ValueError, match="busy"), one_writer(partial, is_folder=is_folder, refusal=BUSY):
                pass
    with one_writer(partial, is_folder=is_folder, refusal=BUSY):
        partial.rename(tmp_path / "model")
        with one_writer(partial, is_folder=is_folder, refusal=BUSY):  # another one, under the name that is free again
            assert partial.exists()


def test_a_folder_that_another_process_writes_stays_as_it_is(tmp_path):
    partial, out = tmp_path / ".out.partial", tmp_path / "out"
    with one_writer(partial, is_folder=True, refusal=BUSY):
        (partial / "vocab.json").write_text("of the other")
        with pytest.raises(DataError, match="is being written by another process; wait for it or name another"):
            save_folder([tiny_tokenizer()], out)
        assert [path.name for path in partial.iterdir()] == ["vocab.json"]
    save_folder([tiny_tokenizer()], out)
    assert find_changes(out) == [] and not partial.exists()
    with pytest.raises(ResourceError, match="is there already and is not empty; name another folder"):
        save_folder([tiny_tokenizer()], out)


def test_a_file_that_another_process_writes_stays_as_it_is(tmp_path):
    text, partial, out = write_text_checkpoint(tmp_path / "text"), tmp_path / ".out.gguf.partial", tmp_path / "out.gguf"
    with one_writer(partial, is_folder=False, refusal=BUSY):
        partial.write_text("of the other")
        with pytest.raises(DataError, match="is being written by another process"):
            export_gguf(text, out)
        assert partial.read_text() == "of the other"
    export_gguf(text, out)
    whole = out.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        export_gguf(text, out, dtype="float16")
    assert out.read_bytes() == whole and not partial.exists()


UNLOCKED = "warning: {} is on a file system without locks; make sure that no other process writes there\n"


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_file_system_without_locks_lets_one_write(tmp_path, is_folder, without_locks):
    partial = tmp_path / ".model.partial"
    with one_writer(partial, is_folder=is_folder, refusal=BUSY):
        assert partial.exists()


def test_a_folder_of_a_file_system_without_locks_says_once_that_it_holds_nothing(tmp_path, without_locks, capsys):
    for _ in range(2):
        with one_process(tmp_path / "run" / "run.lock", ValueError):
            assert (tmp_path / "run" / "run.lock").read_text().strip().isdigit()
    assert capsys.readouterr().err == UNLOCKED.format(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EIO])
def test_a_disk_that_fails_is_no_file_system_without_locks(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, "")

    monkeypatch.setattr(fcntl, "flock", flock)
    with open(tmp_path / "file", "w") as file:
        if number != errno.EIO:
            assert take_lock(file) is False
            return
        with pytest.raises(OSError):
            take_lock(file)


def test_a_file_system_without_modes_takes_a_model(tmp_path, monkeypatch):
    def chmod(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", chmod)
    save_folder(load_text_model(write_text_checkpoint(tmp_path / "text")), tmp_path / "out")
    assert find_changes(tmp_path / "out") == []


WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from arlow_vl.models.folder_writing import save_folder
from tests.tiny_runs import tiny_tokenizer
save_folder([tiny_tokenizer()], Path(sys.argv[1]), finish=lambda _: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_after_a_kill_the_same_command_writes_the_folder(tmp_path):
    process = by_fork.Popen([sys.executable, "-c", WRITE_AND_DIE, str(tmp_path / "out")])
    assert process.wait(120) == -signal.SIGKILL and [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    (tmp_path / ".out.partial" / "of-another-model.json").write_text("")
    save_folder([tiny_tokenizer()], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and find_changes(tmp_path / "out") == []
    assert not (tmp_path / "out" / "of-another-model.json").exists()


def test_who_may_read_one_file_of_a_model_may_read_all(tmp_path):
    model, tokenizer = load_text_model(write_text_checkpoint(tmp_path / "text"))
    save_folder([model, tokenizer], tmp_path / "out")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_an_export_has_its_name_only_once_it_is_proved(tmp_path, monkeypatch, capsys):
    text, out = write_text_checkpoint(tmp_path / "text"), tmp_path / "out"

    def prove(model, folder, told):
        assert told == out and not out.exists() and load_text_model(folder)
        raise CheckpointError("answers otherwise")

    monkeypatch.setattr(export, "check_written", prove)
    assert main(["checkpoint", "export", str(text), "--out", str(out)]) == 4
    assert "answers otherwise" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
