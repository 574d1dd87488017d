"""Remote files: a server that fails is named, and what comes is whole, right, fetched once and within the limit."""

import hashlib
import io
import json
import multiprocessing
import os
import resource
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.cli import main
from arlow_vl.data import remote
from arlow_vl.data.formats.detect import open_source
from arlow_vl.data.index.building import build_index, indexes_of
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.places import open_index, place_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.remote_cache import DataCache
from arlow_vl.data.remote_fetch import Patience, told
from arlow_vl.data.samples import ImageRef
from arlow_vl.errors import DataError, ResourceError
from tests.outside_data import JPEG, tar_of

SHORT = Patience(stall_seconds=0.3, retry_seconds=0.3, first_pause=0.01)


class Server(ThreadingHTTPServer):
    """Serves `files` by path. `answers` of a path are used up first: a status, "stall", "cut", bytes, or seconds."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.answers, self.asked, self.always = {}, {}, [], {}
        self.released = threading.Event()

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def count(self, name):
        return self.asked.count(f"/{name}")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        waiting = self.server.answers.get(path, [])
        answer = waiting.pop(0) if waiting else self.server.always.get(path, self.server.files.get(path, 404))
        if isinstance(answer, float):
            time.sleep(answer)
            answer = self.server.files[path]
        if isinstance(answer, int):
            self.send_error(answer)
            return
        content = answer if isinstance(answer, bytes) else self.server.files[path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if answer == "stall":
            self.wfile.write(content[: len(content) // 2])
            self.server.released.wait(20)
        self.wfile.write(content[: len(content) // 2] if answer == "cut" else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ARLOW_DATA_CACHE", str(tmp_path / "cache"))
    return DataCache(tmp_path / "cache", 2**20)


def fetched(address, cache, patience=SHORT):
    with remote.hold(address, cache=cache, patience=patience) as held:
        return held.path.read_bytes()


def left_over(cache):
    return [path.name for path in cache.folder.rglob("*.partial")]


# Fetching


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
    patient = Patience(stall_seconds=0.2, retry_seconds=5.0, first_pause=0.01)
    assert fetched(server.url("a.bin"), cache, patient) == b"whole bytes"
    assert server.count("a.bin") == 3 and left_over(cache) == []


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (503, r"answered 503 .* \([2-9] tries in 0\.\d s\); see whether address and server are right"),
        ("stall", r"sent nothing for 0\.3 s \(1 try in 0\.\d s\)"),
        ("cut", r"broke off in the middle \([2-9] tries in"),
        (404, r"there is no such file \(1 try in 0\.\d s\); see whether the address is right and you may read it"),
        (403, r"answered 403 .*\(1 try in"),
        (400, r"answered 400 .*\(1 try in"),
    ],
)
def test_a_fault_that_stays_is_named_with_address_tries_and_seconds(server, cache, fault, sentence):
    server.files["/a.bin"], server.always["/a.bin"] = b"whole bytes", fault
    with pytest.raises(DataError, match=f"^http://127.0.0.1:{server.server_port}/a.bin: {sentence}"):
        fetched(server.url("a.bin"), cache)
    assert left_over(cache) == [] and not list(cache.folder.rglob("a.bin"))


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
    assert told("https://me:secret@host/a.tar?token=secret#sha256=0") == "https://host/a.tar"
    with pytest.raises(DataError) as fault:
        fetched(server.url("gone.bin?token=secret"), cache)
    assert "secret" not in str(fault.value)


# The cache


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


# Addresses


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
        found = [{"name": name, "size": len(data), "type": "file"} for name, data in self.content.items()]
        return found if detail else [entry["name"] for entry in found]

    def _open(self, path, mode="rb", **_):
        time.sleep(self.seconds)
        return io.BytesIO(self.content[path])


def test_a_file_system_that_lists_takes_wildcards(cache, monkeypatch):
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    monkeypatch.setattr(Shelf, "content", {"s/b.tar": b"b", "s/a.tar": b"a", "s/c.txt": b"c"})
    assert remote.listed("shelf://s/*.tar") == ["shelf://s/a.tar", "shelf://s/b.tar"]
    assert fetched("shelf://s/b.tar", cache) == b"b"
    with pytest.raises(DataError, match="no file is there by this name; see whether the wildcard is right"):
        remote.listed("shelf://s/*.png")


def test_a_file_system_without_an_asynchronous_form_is_given_up_when_it_stalls(cache, monkeypatch):
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    monkeypatch.setattr(Shelf, "content", {"s/a.bin": b"a"})
    monkeypatch.setattr(Shelf, "seconds", 1.5)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"shelf://s/a\.bin: sent nothing for 0\.3 s \(1 try"):
        fetched("shelf://s/a.bin", cache)
    assert time.monotonic() - began < 1.45


# Sources


def shards_of(server, number=2):
    """The address of so many shards of three samples each."""
    for shard in range(number):
        keys = [f"{shard}{n}" for n in range(3)]
        members = (((f"{key}.jpg", JPEG + key.encode()), (f"{key}.txt", f"caption {key}".encode())) for key in keys)
        server.files[f"/s/train-{shard}.tar"] = tar_of(*(member for pair in members for member in pair))
    return server.url(f"s/train-{{0..{number - 1}}}.tar")


def images_of(indexes):
    return [read_image(image) for sample in all_of(indexes) for image in sample.images]


def all_of(indexes):
    found = IndexedSamples(indexes)
    return [found.sample(n) for n in range(len(found))]


def test_remote_shards_are_the_samples_of_local_ones(server, cache, tmp_path):
    address = shards_of(server)
    (tmp_path / "local").mkdir()
    for path, content in server.files.items():
        (tmp_path / "local" / os.path.basename(path)).write_bytes(content)
    there, here = indexes_of(address), indexes_of(tmp_path / "local")
    named = indexes_of(f"file://{tmp_path}/local/train-{{0..1}}.tar")
    assert IndexedSamples(there).fingerprint == IndexedSamples(here).fingerprint == IndexedSamples(named).fingerprint
    assert images_of(there) == images_of(here)
    assert all(image.path.startswith("http://") for sample in all_of(there) for image in sample.images)


def test_a_second_start_asks_nobody_until_an_image_is_read(server, cache):
    address = shards_of(server)
    images = images_of(indexes_of(address, workers=2))
    for path in cache.folder.rglob("*.tar"):
        path.unlink()
    asked = len(server.asked)
    again = indexes_of(address)
    assert len(all_of(again)) == 6 and len(server.asked) == asked
    assert images_of(again) == images
    assert server.asked[asked:] == ["/s/train-0.tar", "/s/train-1.tar"]


def test_index_json_is_heard_on_the_number_of_samples_too(server, cache):
    address = shards_of(server, number=1)
    server.files["/s/index.json"] = json.dumps({"train-0.tar": {"samples": 5}}).encode()
    (index,) = indexes_of(address)
    (fault,) = index.header.faults
    assert fault.reason == "index.json says 5 samples, read 3" and fault.missing == 2


def test_the_commands_take_addresses(server, cache, tmp_path, capsys):
    address = shards_of(server)
    assert main(["data", "index", address, "--workers", "1"]) == 0
    assert "6 used, 0 skipped" in capsys.readouterr().out
    assert main(["data", "stats", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 6
    assert main(["data", "prepare", address, "--out", str(tmp_path / "out"), "--workers", "2"]) == 0
    assert len(all_of(indexes_of(tmp_path / "out"))) == 6
    assert main(["data", "index", "pipe:touch sentinel"]) == 3


def test_a_shard_that_comes_again_with_other_bytes_is_refused(server, cache):
    index = build_index(shards_of(server, number=1).replace("{0..0}", "0"))
    for path in cache.folder.rglob("*.tar"):
        path.unlink()
    server.files["/s/train-0.tar"] = server.files["/s/train-0.tar"].replace(b"caption", b"Caption") + b"\0" * 512
    with pytest.raises(DataError, match=r"train-0\.tar: sent other bytes than its index or address says"):
        read_image(index.sample(0).images[0])


def test_shards_are_read_through_a_cache_that_holds_one_of_them(server, cache, monkeypatch):
    address = shards_of(server, number=3)
    size = len(server.files["/s/train-0.tar"])
    monkeypatch.setenv("ARLOW_DATA_CACHE_GIB", str(1.5 * size / 2**30))
    indexes = indexes_of(address)
    assert len(images_of(indexes)) == 9
    assert len(list(cache.folder.rglob("*.tar"))) == 1


def test_an_index_that_is_missing_is_one_sentence(server, cache):
    with pytest.raises(
        DataError, match=r"train-0\.tar has no index; run `arlow data index http://127.*/s/train-0\.tar`"
    ):
        open_index(server.url("s/train-0.tar?token=secret"))
    assert "secret" not in str(place_of(server.url("s/a.tar?token=secret")).folders[0])


def test_annotations_at_an_address_name_images_of_a_folder_here(server, cache, tmp_path):
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "id": 1, "caption": "A fox."}]}
    server.files["/c.json"] = json.dumps(coco).encode()
    (tmp_path / "a.jpg").write_bytes(b"image")
    (index,) = indexes_of(server.url("c.json"), images=tmp_path)
    server.files.clear()
    (again,) = indexes_of(server.url("c.json"), images=tmp_path)
    assert again.sample(0) == index.sample(0)
    assert images_of([again]) == [b"image"]
    with pytest.raises(DataError, match=r"c\.json: its images are files; name the folder that their paths start from"):
        open_source(server.url("c.json"))


def test_an_address_inside_annotations_is_not_opened(server, cache, tmp_path):
    server.files["/a.jpg"] = b"image"
    record = {"image": server.url("a.jpg"), "text": "A fox.", "messages": None}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    source = open_source(f"file://{tmp_path}/a.jsonl")
    assert list(source.iterate()) == [] and source.tally.bad[0].reason == "image_url_not_fetched"
    assert server.asked == []


def test_a_shard_that_is_gone_ends_the_reading_of_an_image_with_its_address(server, cache):
    with pytest.raises(DataError, match=r"/a\.tar: there is no such file \(1 try"):
        read_image(ImageRef(remote.pinned(server.url("a.tar"), "0" * 64), 0, 5, b"0" * 32))
