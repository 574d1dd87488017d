"""Remote shards and annotations are the samples of local ones, and nothing else is opened."""

import json
import os

import pytest

from arlow_vl.cli import main
from arlow_vl.data import remote
from arlow_vl.data.formats.detect import open_source
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.places import place_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.index.ready import ready_indexes
from arlow_vl.data.index.report import check_left_out
from arlow_vl.data.loader import ResumableLoader
from arlow_vl.data.samples import ImageRef
from arlow_vl.data.sources import Source
from arlow_vl.data.verify import verify_sources
from arlow_vl.errors import DataError
from tests.data.remote.server import fetched
from tests.outside_data import JPEG, tar_of


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


def test_a_range_at_an_address_is_ready_once_it_is_indexed(server, cache):
    address = shards_of(server)
    with pytest.raises(DataError, match=r"train-0\.tar has no index"):
        ready_indexes(address)
    assert server.asked == []
    indexes_of(address)
    assert len(ready_indexes(address)) == 2


def test_index_json_is_heard_on_the_number_of_samples_too(server, cache):
    address = shards_of(server, number=1)
    server.files["/s/index.json"] = json.dumps({"train-0.tar": {"samples": 5}}).encode()
    (index,) = indexes_of(address)
    (fault,) = index.header.faults
    assert fault.reason == "index.json says 5 samples, read 3" and fault.missing == 2


def test_shards_with_spaces_in_their_names_are_those_of_here_and_held_to_index_json(server, cache, tmp_path):
    shards_of(server, number=1)
    content = server.files["/s/train-0.tar"]
    (tmp_path / "a b.tar").write_bytes(content)
    server.files["/s/a%20b.tar"] = content
    assert all_of(indexes_of(server.url("s/a%20b.tar")))[0].key == all_of(indexes_of(tmp_path / "a b.tar"))[0].key
    server.files |= {"/t/a%20b.tar": content, "/t/index.json": json.dumps({"a b.tar": {"bytes": 5}}).encode()}
    with pytest.raises(DataError, match=r"where the index\.json beside it says 5"):
        fetched(server.url("t/a%20b.tar"), cache)


def test_the_annotations_of_questions_at_an_address_are_fetched_from_beside_them(server, cache, tmp_path):
    asked = {"questions": [{"question_id": 1, "image_id": 9, "question": "Is it red?"}]}
    said = {"annotations": [{"question_id": 1, "multiple_choice_answer": "yes", "answers": []}]}
    server.files["/q/v2_OpenEnded_x_questions.json"] = json.dumps(asked).encode()
    (tmp_path / "9.jpg").write_bytes(JPEG)
    address = server.url("q/v2_OpenEnded_x_questions.json?token=questions")
    with pytest.raises(DataError, match=r"/q/v2_x_annotations\.json: there is no such file"):
        indexes_of(address, images=tmp_path)
    server.files["/q/v2_x_annotations.json"] = json.dumps(said).encode()
    (index,) = indexes_of(address, images=tmp_path)
    assert [text.task for text in index.sample(0).texts] == ["question"]


PAGE = b"<html>Please log in</html>"


@pytest.mark.parametrize("name", ["train-0.tar", "chats.json", "chats.jsonl"])
def test_a_page_that_came_for_a_file_is_asked_for_again(server, cache, tmp_path, name):
    shards_of(server, number=1)
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    server.files |= {"/s/chats.json": json.dumps([chat]).encode(), "/s/chats.jsonl": json.dumps(chat).encode()}
    server.answers[f"/s/{name}"] = [PAGE]
    with pytest.raises(DataError) as fault:
        check_left_out(indexes_of(server.url(f"s/{name}"), images=tmp_path if "chats" in name else None), where="x")
    assert str(cache.folder) not in str(fault.value) and not list(cache.folder.rglob(name))
    (index,) = indexes_of(server.url(f"s/{name}"), images=tmp_path if "chats" in name else None)
    assert len(index) and not index.header.faults


def test_half_of_a_shard_is_asked_for_again_until_the_same_came_twice(server, cache):
    address = shards_of(server, number=1)
    whole = server.files["/s/train-0.tar"]
    server.files["/s/train-0.tar"] = whole[: len(whole) // 2]
    (index,) = indexes_of(address)
    (fault,) = index.header.faults
    assert fault.shard == server.url("s/train-0.tar") and len(index) == 1
    assert images_of([index])  # which fetches it again
    assert indexes_of(address)[0].header.faults
    assert server.count("s/train-0.tar") == 2
    next(cache.folder.rglob("train-0.tar")).unlink()
    server.files["/s/train-0.tar"] = whole
    (index,) = indexes_of(address)
    assert len(index) == 3 and not index.header.faults


def test_a_half_shard_that_came_twice_is_asked_for_no_more(server, cache):
    address = shards_of(server, number=1)
    server.files["/s/train-0.tar"] = server.files["/s/train-0.tar"][:-2000]
    made = [indexes_of(address)[0] for _ in range(3)]
    assert all(index.header.faults for index in made)
    assert server.count("s/train-0.tar") == 2


def test_a_start_without_the_network_uses_the_index_of_a_half_shard(server, cache, capsys):
    address = shards_of(server)
    half = server.files["/s/train-0.tar"]
    server.files["/s/train-0.tar"] = half[: len(half) // 2]
    indexes_of(address)
    server.files.clear()
    assert list(map(len, indexes_of(address))) == [1, 3]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {server.url('s/train-0.tar')}: there is no such file (1 try in ")
    assert line.endswith("; what is indexed of it is used")


def test_verify_lets_go_of_what_it_has_read_and_of_half_a_shard(server, cache):
    address = shards_of(server)
    server.files["/s/train-1.tar"] = server.files["/s/train-1.tar"][:-2000]
    found = verify_sources([address])
    assert [fault.shard for fault in found.tally.faults] == [server.url("s/train-1.tar")]
    assert [path.name for path in cache.folder.rglob("*.tar")] == ["train-0.tar"]
    assert cache._make_room(cache.most_bytes)


def test_what_is_said_of_an_address_keeps_its_secrets(server, cache, tmp_path, capsys):
    shards_of(server, number=1)
    half = server.files["/s/train-0.tar"]
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a"}]}
    server.files |= {
        "/s/empty.tar": half[:512],
        "/s/a1.json": json.dumps(coco).encode(),
        "/s/a2.json": json.dumps([{"image": "a.jpg", "caption": "a"}]).encode(),
    }
    place = f"http://user:secret@127.0.0.1:{server.server_port}/s/"
    shard, lines = f"{place}empty.tar?token=secret", f"{place}a{{1..2}}.json?token=secret"
    for verb in (["index"], ["verify"], ["prepare", "--out", str(tmp_path / "out")]):
        assert main(["data", *verb, shard, "--workers", "1"]) == 3
    assert main(["data", "verify", shard, shard, "--workers", "1"]) == 3
    assert main(["data", "index", lines, "--images", str(tmp_path), "--workers", "1"]) == 3
    said = "".join(capsys.readouterr())
    assert "secret" not in said
    assert f"{server.url('s/empty.tar')}: no sample can be used: " in said
    assert f"{server.url('s/a{1..2}.json')}: holds annotations of several formats" in said


def test_the_commands_take_addresses(server, cache, tmp_path, capsys):
    address = shards_of(server)
    assert main(["data", "index", address, "--workers", "1"]) == 0
    assert "6 used, 0 skipped" in capsys.readouterr().out
    assert main(["data", "stats", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 6
    assert main(["data", "prepare", address, "--out", str(tmp_path / "out"), "--workers", "2"]) == 0
    assert len(all_of(indexes_of(tmp_path / "out"))) == 6
    assert main(["data", "index", "pipe:touch sentinel"]) == 3


class RemoteImages:
    """The bytes of images, as a data set of the loader."""

    def __init__(self, indexes):
        self.samples = IndexedSamples(indexes)
        self.fingerprint = self.samples.fingerprint

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        (image,) = self.samples.sample(index).images
        return read_image(image)

    def key(self, index):
        return self.samples.key(index)


def test_workers_fetch_what_left_the_cache_once_and_give_the_same_batches(server, cache):
    indexes = indexes_of(shards_of(server))

    def batches(workers):
        source = Source(name="there", dataset=RemoteImages(indexes), samples_per_batch=2)
        return list(ResumableLoader([source], lambda items: {"images": items}, seed=1, num_batches=6, workers=workers))

    here = batches(0)
    for path in cache.folder.rglob("*.tar"):
        path.unlink()
    server.answers |= {f"/s/train-{n}.tar": [0.1] for n in (0, 1)}
    asked = len(server.asked)
    assert batches(2) == here
    assert sorted(server.asked[asked:]) == ["/s/train-0.tar", "/s/train-1.tar"]


def test_a_shard_that_comes_again_with_other_bytes_is_refused(server, cache):
    (index,) = indexes_of(shards_of(server, number=1).replace("{0..0}", "0"))
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
    with pytest.raises(DataError, match=r"http://127.*/s/train-0\.tar has no index$"):
        ready_indexes(server.url("s/train-0.tar?token=secret"))
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
