"""A server that fails is named, and what comes is whole, right, fetched once and within the limit."""

import errno
import fcntl
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.data import remote
from arlow_vl.data.formats.detect import open_source
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.remote_cache import DataCache
from arlow_vl.data.remote_fetch import Patience, without_secrets
from arlow_vl.data.workers import Pool
from arlow_vl.errors import DataError, ResourceError
from tests.data.remote.server import SHORT, STALLED, fetched, left_over


def test_a_file_is_fetched_once_and_read_from_the_cache(server, cache):
    server.files["/a.tar"] = b"bytes"
    assert fetched(server.url("a.tar"), cache) == b"bytes"
    server.files.clear()
    assert fetched(server.url("a.tar"), cache) == b"bytes"
    assert server.count("a.tar") == 1 and left_over(cache) == []


@pytest.mark.parametrize("fault", [503, 429, "stall", "cut"])
def test_a_fault_that_passes_costs_another_try(server, cache, fault):
    server.files["/a.bin"] = b"whole bytes"
    server.answers["/a.bin"] = [fault, fault]
    stall_seconds = 0.5 if fault == "stall" else 10.0
    patient = Patience(stall_seconds=stall_seconds, retry_seconds=10.0, first_pause=0.01)
    assert fetched(server.url("a.bin"), cache, patient) == b"whole bytes"
    assert server.count("a.bin") == 3 and left_over(cache) == []


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (503, r"answered 503 .* \([2-9] tries in \d\.\d s\); see whether address and server are right"),
        ("stall", r"sent nothing for 0\.3 s \(1 try in \d\.\d s\)"),
        ("cut", r"broke off in the middle \([2-9] tries in"),
        (404, r"there is no such file \(1 try in \d\.\d s\); see whether the address is right and you may read it"),
        (403, r"answered 403 .*\(1 try in"),
        (400, r"answered 400 .*\(1 try in"),
        ("/a.bin", r"redirects in a circle \(1 try in"),
    ],
)
def test_a_fault_that_stays_is_named_with_address_tries_and_seconds(server, cache, fault, sentence):
    server.files["/a.bin"], server.always["/a.bin"] = b"whole bytes", fault
    with pytest.raises(DataError, match=f"^http://127.0.0.1:{server.server_port}/a.bin: {sentence}"):
        fetched(server.url("a.bin"), cache, STALLED if fault == "stall" else SHORT)
    assert left_over(cache) == [] and not list(cache.folder.rglob("a.bin"))


@pytest.mark.parametrize(("name", "answer"), [("a.txt", "encoded"), ("a.txt.gz", "stored encoded")])
def test_a_file_is_as_its_name_says_whatever_a_server_calls_its_encoding(server, cache, name, answer):
    server.files[f"/{name}"] = content = gzip.compress(b"text") if name.endswith(".gz") else b"text"
    server.always[f"/{name}"] = answer
    assert fetched(server.url(name), cache) == content


@pytest.mark.parametrize(
    ("address", "name"),
    {
        "https://h/a%20b%25.tar?x=%41": "a b%.tar",
        "https://h/caf%C3%A9.tar": "café.tar",
        "https://h/s%2Fa.tar": "s%2Fa.tar",
        "https://h/%FF.tar": "%FF.tar",
        "s3://b/a%20b.tar": "a%20b.tar",
    }.items(),
)
def test_a_file_of_a_web_server_has_the_name_that_it_has_there(address, name):
    assert remote.name_of(address) == name


def test_nobody_listening_is_named(cache, server):
    server.server_close()
    with pytest.raises(DataError, match=r"a\.tar: failed \(ClientConnector.*[2-9] tries in"):
        fetched(server.url("x/a.bin").replace("x/a.bin", "a.tar#sha256=" + "0" * 64), cache)


def test_a_try_ends_after_its_time_though_bytes_come(server, cache):
    server.files["/a.bin"], server.always["/a.bin"] = b"whole bytes", "stall"
    short = Patience(stall_seconds=9.0, try_seconds=0.2, retry_seconds=0.1)
    with pytest.raises(DataError, match=r"was not ready after 0\.2 s \(1 try"):
        fetched(server.url("a.bin"), cache, short)


def test_other_bytes_than_index_json_says_are_refused_and_asked_for_again(server, cache):
    right = b"right"
    entry = {"bytes": 5, "sha256": hashlib.sha256(right).hexdigest()}
    server.files |= {"/a.tar": right, "/index.json": json.dumps({"a.tar": entry}).encode()}
    server.answers["/a.tar"] = [b"wrong", b"longer than right"]
    assert fetched(server.url("a.tar"), cache, Patience(retry_seconds=5.0, first_pause=0.01)) == right
    assert server.count("a.tar") == 3
    server.files["/index.json"] = json.dumps({"b.tar": entry, "c.tar": {"bytes": 6}}).encode()
    remote._refresh_index_json.cache_clear()
    server.files |= {"/b.tar": b"wrong", "/c.tar": right}
    with pytest.raises(DataError, match=r"b\.tar: sent other bytes than the index\.json beside it says \(SHA-256 8810"):
        fetched(server.url("b.tar"), cache)
    with pytest.raises(DataError, match=r"c\.tar: sent 5 bytes where the index\.json beside it says 6 \([2-9] tries"):
        fetched(server.url("c.tar"), cache)


def test_an_address_with_its_sha256_takes_no_other_bytes(server, cache):
    server.files["/a.bin"] = b"new"
    fetched(server.url("a.bin"), cache)
    old = remote.pinned(server.url("a.bin"), hashlib.sha256(b"old").hexdigest())
    with pytest.raises(
        DataError, match=r"a\.bin: sent other bytes than its index or address says .*3 tries.*put the old bytes"
    ):
        fetched(old, cache)
    server.files["/a.bin"] = b"old"
    assert fetched(old, cache) == b"old" == fetched(server.url("a.bin"), cache)
    with pytest.raises(DataError, match="a SHA-256 has 64 digits"):
        fetched(server.url("a.bin#sha256=12"), cache)


def test_messages_keep_passwords_and_queries_to_themselves(server, cache):
    assert without_secrets("https://me:secret@host/a.tar?token=secret#sha256=0") == "https://host/a.tar"
    with pytest.raises(DataError) as fault:
        fetched(server.url("gone.bin?token=secret"), cache)
    assert "secret" not in str(fault.value)


def fetch_in_process(address, cache, found):
    found.put(fetched(address, cache, Patience(retry_seconds=5.0)))


def test_two_processes_fetch_a_file_once(server, cache):
    server.files["/a.bin"] = os.urandom(4096)
    server.answers["/a.bin"] = [0.3]
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    arguments = (server.url("a.bin"), cache, found)
    processes = [context.Process(target=fetch_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [found.get() for _ in processes] == [server.files["/a.bin"]] * 2
    assert server.count("a.bin") == 1


def test_a_forked_process_fetches_after_its_parent_did(server, cache):
    server.files |= {"/a.bin": b"a", "/b.bin": b"b"}
    fetched(server.url("a.bin"), cache)
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    process = context.Process(target=fetch_in_process, args=(server.url("b.bin"), cache, found))
    process.start()
    process.join(20)
    assert process.exitcode == 0 and found.get() == b"b"


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_in_the_way(server, cache):
    server.files["/a.bin"] = b"whole bytes"
    server.answers["/a.bin"] = ["stall"]
    patient = Patience(stall_seconds=20.0)
    process = multiprocessing.get_context("fork").Process(target=fetched, args=(server.url("a.bin"), cache, patient))
    process.start()
    while not left_over(cache):
        time.sleep(0.01)
    process.kill()
    process.join(20)
    assert fetched(server.url("a.bin"), cache) == b"whole bytes"
    (remains,) = left_over(cache)
    (path,) = cache.folder.rglob(remains)
    os.utime(path, (0, 0))  # as if that was more than an hour ago
    next(cache.folder.rglob("a.bin")).unlink()
    fetched(server.url("a.bin"), cache)
    assert left_over(cache) == []


def told_on_a_full_disk(address, cache, found):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a disk with so much room
    try:
        fetched(address, cache)
    except ResourceError as error:
        found.put(str(error))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(server, cache):
    server.files["/a.bin"] = b"x" * 5000
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    process = context.Process(target=told_on_a_full_disk, args=(server.url("a.bin"), cache, found))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert "the disk that remote data are kept on is full (File too large); make room, or set ARLOW" in found.get()
    assert left_over(cache) == [] and server.count("a.bin") == 1


def test_what_was_used_longest_ago_leaves_first(server, cache):
    small = DataCache(cache.folder, 30)
    server.files |= {f"/{name}.bin": name.encode() * 10 for name in "abcd"}
    for name in "abca":
        fetched(server.url(f"{name}.bin"), small)
    fetched(server.url("d.bin"), small)
    assert sorted(path.name for path in cache.folder.rglob("?.bin")) == ["a.bin", "c.bin", "d.bin"]
    assert sum(path.stat().st_size for path in cache.folder.rglob("?.bin")) <= 30


def test_what_is_being_read_stays_and_a_cache_full_of_it_is_one_sentence(server, cache):
    small = DataCache(cache.folder, 25)
    server.files |= {f"/{name}.bin": name.encode() * 10 for name in "abc"}
    with (
        remote.hold(server.url("a.bin"), cache=small, patience=SHORT) as first,
        remote.hold(server.url("b.bin"), cache=small, patience=SHORT) as second,
    ):
        with pytest.raises(ResourceError, match=r"no room for the 10 bytes of c\.bin, .* raise ARLOW_DATA_CACHE_GIB"):
            fetched(server.url("c.bin"), small)
        assert first.path.read_bytes() + second.path.read_bytes() == b"a" * 10 + b"b" * 10
    assert fetched(server.url("c.bin"), small) == b"c" * 10
    assert left_over(cache) == []


def test_a_cache_without_locks_holds_files_and_lets_none_go(server, cache, without_locks):
    small = DataCache(cache.folder, 25)
    server.files |= {f"/{name}.bin": name.encode() * 10 for name in "abc"}
    for name in "aabb":
        assert fetched(server.url(f"{name}.bin"), small) == name.encode() * 10
    assert server.count("a.bin") == server.count("b.bin") == 1
    patient = Patience(stall_seconds=10.0, retry_seconds=10.0, first_pause=0.01)
    began = time.monotonic()
    with pytest.raises(ResourceError, match=r"a file system without locks does not tell what is being read; .* or set"):
        fetched(server.url("c.bin"), small, patient)
    assert time.monotonic() - began < 9 and fetched(server.url("a.bin"), small) == b"a" * 10


def test_files_leave_a_cache_on_nfs_which_locks_for_one_alone_what_is_open_for_writing(server, cache, monkeypatch):
    flock = fcntl.flock

    def flock_of_nfs(file, how):
        descriptor = file if isinstance(file, int) else file.fileno()
        if how & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    small = DataCache(cache.folder, 15)
    server.files |= {f"/{name}.bin": name.encode() * 10 for name in "ab"}
    for name in "ab":
        fetched(server.url(f"{name}.bin"), small)
    assert [path.name for path in cache.folder.rglob("?.bin")] == ["b.bin"]


def test_a_cache_that_can_only_be_read_gives_what_it_has(server, cache, monkeypatch):
    server.files["/a.bin"] = b"bytes"
    fetched(server.url("a.bin"), cache)

    def utime(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", utime)
    assert fetched(server.url("a.bin"), cache) == b"bytes" and server.count("a.bin") == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_damaged_file_stays_in_a_cache_that_cannot_be_written(server, cache, monkeypatch, number):
    server.files["/a.bin"] = b"bytes"
    held = remote.hold(server.url("a.bin"), cache=cache, patience=SHORT)
    held.is_damaged = True

    def unlink(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "unlink", unlink)
    held.close()
    assert held.path.read_bytes() == b"bytes"


def test_a_file_larger_than_the_cache_is_not_taken_in(server, cache):
    server.files["/a.bin"] = b"x" * 100
    with pytest.raises(ResourceError, match=r"a\.bin: is over 50 bytes, the limit; ARLOW_DATA_CACHE_GIB sets it"):
        fetched(server.url("a.bin"), DataCache(cache.folder, 50))
    assert left_over(cache) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"remote data cannot be kept there .* set ARLOW_DATA_CACHE to a folder"):
        fetched(server.url("a.bin"), DataCache(tmp_path / "file", 100))


def test_a_file_that_was_cut_in_the_cache_is_fetched_again(server, cache):
    server.files["/a.bin"] = b"bytes"
    with remote.hold(server.url("a.bin"), cache=cache, patience=SHORT) as held:
        path = held.path
    path.write_bytes(b"by")
    assert fetched(server.url("a.bin"), cache) == b"bytes"


@pytest.mark.parametrize("size", ["many", "0", "-1", "inf", "nan"])
def test_a_size_that_is_no_number_is_one_sentence(monkeypatch, size):
    monkeypatch.setenv("ARLOW_DATA_CACHE_GIB", size)
    with pytest.raises(DataError, match=f"ARLOW_DATA_CACHE_GIB is '{size}'; set it to a number of GiB"):
        DataCache.of_environment()


def test_a_range_stands_for_its_numbers_as_wide_as_they_are_written():
    assert remote.listed("https://h/a-{08..10}.tar") == [f"https://h/a-{n}.tar" for n in ("08", "09", "10")]
    assert remote.listed("https://h/{8..10}.tar") == [f"https://h/{n}.tar" for n in (8, 9, 10)]
    assert len(remote.listed("s3://b/{0..1}/{00..11}.tar")) == 24


@given(st.integers(0, 10**6), st.integers(0, 50), st.integers(1, 9))
def test_ranges_are_complete_ordered_and_without_repetition(first, more, width):
    found = list(remote.ranges(f"https://h/{{{first:0{width}d}..{first + more:0{width}d}}}.tar"))
    assert [int(address[10:-4]) for address in found] == list(range(first, first + more + 1))
    assert found == sorted(set(found), key=lambda address: (len(address), address))


@pytest.mark.parametrize(
    ("address", "sentence"),
    {
        "pipe:curl https://h/a.tar": "no command is run to read data; name a file, a folder or an address",
        "nonsense://h/a.tar": r"nonsense:// is not read from; write https://, s3:// or a path",
        "memory://h/a.tar": "memory:// is not read from",
        "zip://a.tar::https://h/b.zip": "zip:// is not read from",
        "https://h/*.tar": r"web servers give no list; write a range as train-\{000000..000099\}.tar",
        "https://h/{3..1}.tar": r"the range \{3..1\} counts down; write the smaller number first",
        "https://h/{0..9999999}.tar": "stands for over 100,000 files; write a shorter range",
        "https://h/": "names no file; write the address of one",
        "https://h/a/..": "names no file",
        "https://h/%2E%2E": "names no file",
        "https://h/a%00.tar": "names no file",
        "file://other/a.tar": "a file on another machine is not opened; write file:///folder/file",
    }.items(),
)
def test_what_is_no_address_to_read_from_is_one_sentence(address, sentence):
    with pytest.raises(DataError, match=sentence):
        open_source(address)


def test_a_file_system_whose_package_is_missing_is_one_sentence(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"s3://b/a\.bin: cannot be read \(Install s3fs.*\); install what it names"):
        fetched("s3://b/a.bin", cache)


class Shelf(fsspec.AbstractFileSystem):
    """A file system of its own that can list and has no asynchronous form."""

    protocol = "shelf"
    cachable = False
    content: ClassVar[dict[str, bytes]] = {}
    seconds: ClassVar[float] = 0.0

    def ls(self, path, detail=True, **_):
        if path not in ("s", "s/folder", *self.content):
            raise FileNotFoundError(path)
        found: list[dict] = [{"name": "s/folder", "size": 0, "type": "directory"}]
        found += [{"name": name, "size": len(data), "type": "file"} for name, data in self.content.items()]
        return found if detail else [entry["name"] for entry in found]

    def _open(self, path, mode="rb", **_):
        if path not in self.content:
            raise FileNotFoundError(path)
        time.sleep(self.seconds)
        return io.BytesIO(self.content[path])


def test_a_file_system_that_lists_takes_wildcards(cache, monkeypatch):
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    monkeypatch.setattr(Shelf, "content", {"s/b.tar": b"b", "s/a.tar": b"a", "s/c.txt": b"c"})
    assert remote.listed("shelf://s/*.tar") == ["shelf://s/a.tar", "shelf://s/b.tar"]
    assert fetched("shelf://s/b.tar", cache) == b"b"
    assert remote.listed("shelf://s/[af]*") == ["shelf://s/a.tar"]
    with pytest.raises(DataError, match="no file is there by this name; see whether the wildcard is right"):
        remote.listed("shelf://s/*.png")
    for format in (None, "webdataset"):
        with pytest.raises(DataError, match=r"shelf://s/\*: stands for files of several kinds \(\.tar, \.txt\)"):
            indexes_of("shelf://s/*", format=format)


def test_a_folder_at_an_address_is_one_sentence(cache, monkeypatch):
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    with pytest.raises(DataError, match=r"shelf://s/folder: is a folder; name a file in it"):
        fetched("shelf://s/folder", cache)
    assert left_over(cache) == []


def test_a_file_system_without_an_asynchronous_form_is_given_up_when_it_stalls(cache, monkeypatch):
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    monkeypatch.setattr(Shelf, "content", {"s/a.bin": b"a"})
    monkeypatch.setattr(Shelf, "seconds", 5.0)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"shelf://s/a\.bin: sent nothing for 0\.3 s \(1 try"):
        fetched("shelf://s/a.bin", cache, STALLED)
    assert time.monotonic() - began < 4.5


def test_a_worker_that_fetches_for_long_does_not_hang_while_bytes_arrive(server, cache, caplog):
    server.files["/a.bin"], server.always["/a.bin"] = b"slowly as " * 20_000, "slow"

    def read(task, at):
        at("a.bin")
        return fetched(server.url("a.bin"), cache)

    server.files["/b.bin"] = b"what fetching imports is there now"
    fetched(server.url("b.bin"), cache)
    with Pool(read, workers=2, hang_seconds=1.5) as pool:  # one fetches, for 2.5 s, and the other waits for it
        assert list(pool.results([0, 1])) == [server.files["/a.bin"]] * 2
    assert server.count("a.bin") == 1
    assert "another one reads it again" not in caplog.text


def test_a_worker_to_which_nothing_comes_hangs(server, cache, caplog):
    server.files["/a.bin"], server.answers["/a.bin"] = b"at last", ["stall"]
    server.files["/b.bin"] = b"what fetching imports is there now"
    fetched(server.url("b.bin"), cache)
    with Pool(lambda task, at: fetched(server.url("a.bin"), cache), workers=1, hang_seconds=1.5) as pool:
        assert list(pool.results([0])) == [b"at last"]
    assert "was busy for over 1.5 s; another one reads it again" in caplog.text
