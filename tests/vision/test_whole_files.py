"""A file is what it was or what it shall be, also after a kill, an error and a full disk."""

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vision.whole_files import STALE_SECONDS, put_in_place, remove_remains, write_whole

ROOT = Path(__file__).parents[2]
OLD, NEW = "the old text\n" * 100, "the new text\n" * 100


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    write_whole(path, OLD)
    return path


def names(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()]


@pytest.mark.parametrize("content", ["ä\n", "ä\n".encode(), lambda file: file.write("ä\n".encode())], ids=type)
def test_text_bytes_and_what_a_function_writes_arrive(path, content):
    write_whole(path, content)
    assert path.read_bytes() == b"\xc3\xa4\n"
    assert names(path) == [path.name]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(path):
    def write(file):
        file.write(NEW[:50].encode())
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        write_whole(path, write)
    assert path.read_text() == OLD
    assert names(path) == [path.name]


def test_a_full_disk_leaves_the_old_file_and_the_error_names_it(path):
    """The kernel's limit on a file's size stands for the disk's end: both come in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"{path}'$") as raised:
            write_whole(path, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
    assert path.read_text() == OLD
    assert names(path) == [path.name]


def test_a_disk_that_is_full_when_the_bytes_are_flushed_leaves_the_old_file(path, monkeypatch):
    def no_space(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        write_whole(path, NEW)
    assert path.read_text() == OLD
    assert names(path) == [path.name]


def test_a_writer_that_is_killed_in_the_middle_leaves_the_old_file(path):
    code = (
        "import sys; from pathlib import Path; from vision.whole_files import write_whole\n"
        "def write(file):\n"
        "    file.write(b'half'); file.flush(); print('half', flush=True); sys.stdin.read()\n"
        "write_whole(Path(sys.argv[1]), write)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"half\n"
        writer.kill()
    assert path.read_text() == OLD
    assert len(names(path)) == 2
    remove_remains(path.parent, seconds=0)
    assert names(path) == [path.name]


def test_the_next_write_removes_what_a_kill_left_long_ago_and_nothing_that_is_being_written(path):
    killed, live, other = (
        path.with_name(f".{name}.partial") for name in ("file.txt.killed", "file.txt.live", "other.txt.killed")
    )
    for partial in (killed, live, other):
        partial.write_text("half")
    for partial in (killed, other):
        long_ago = time.time() - STALE_SECONDS - 1
        os.utime(partial, (long_ago, long_ago))
    write_whole(path, NEW)
    assert sorted(names(path)) == sorted([path.name, live.name, other.name])


def test_bytes_are_on_disk_before_the_name_and_the_name_after(path, monkeypatch):
    """Without it, a power cut can leave an empty file under the name."""
    steps = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".txt")[0])
        fsync(descriptor)

    def noted_replace(before, after):
        steps.append("replace")
        replace(before, after)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_whole(path, NEW)
    assert steps == [".file", "replace", "folder"]


def test_a_folder_is_put_in_place_with_all_that_is_in_it(tmp_path):
    partial = tmp_path / ".product.partial"
    write_whole(partial / "weights" / "part", "1")
    put_in_place(partial, tmp_path / "product")
    assert (tmp_path / "product" / "weights" / "part").read_text() == "1"
    assert not partial.exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_forces_no_folder_onto_the_disk_takes_files(path, monkeypatch, number):
    fsync = os.fsync

    def of_files(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(number, "")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    write_whole(path, NEW)
    assert path.read_text() == NEW
