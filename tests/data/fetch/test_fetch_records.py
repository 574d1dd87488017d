import json
from pathlib import Path

import pytest

from arlow_vl.data.fetch import build
from arlow_vl.data.fetch.packages import PackageSet
from arlow_vl.data.fetch.records import (
    begin_part,
    fingerprint,
    finish_part,
    is_finished,
    licences,
    read_manifest,
    record_check,
)
from arlow_vl.data.fetch.shard_files import Sample, write_index, write_shards
from arlow_vl.data.formats.webdataset import read_whole
from arlow_vl.data.index.images import read_image
from arlow_vl.data.verify import verify_sources
from arlow_vl.errors import DataError, ResourceError

SAMPLES = Path(__file__).parents[2] / "samples"

PIP, MORE = PackageSet(frozenset({"pip"})), PackageSet(frozenset({"pip", "npm"}))


def build_part(root: Path, text: str = "built", packages: PackageSet = PIP) -> None:
    (begin_part(root, "text") / "train.jsonl").write_text(text)
    finish_part(root, "text", packages, {"documents": 1})


def test_a_finished_part_is_not_built_again(tmp_path):
    build_part(tmp_path)
    assert is_finished(tmp_path, "text", fingerprint(PIP))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["text"]


def test_other_packages_make_another_build(tmp_path):
    build_part(tmp_path)
    assert not is_finished(tmp_path, "text", fingerprint(MORE))
    build_part(tmp_path, "richer", MORE)
    assert (tmp_path / "text" / "train.jsonl").read_text() == "richer"
    assert read_manifest(tmp_path)["set"] == "pip + npm"


def test_a_changed_or_missing_file_is_built_again(tmp_path):
    build_part(tmp_path)
    (tmp_path / "text" / "train.jsonl").write_text("buil?")
    assert not is_finished(tmp_path, "text", fingerprint(PIP))
    (tmp_path / "text" / "train.jsonl").unlink()
    assert not is_finished(tmp_path, "text", fingerprint(PIP))


def test_an_interrupted_part_leaves_the_old_one_in_place(tmp_path):
    build_part(tmp_path)
    (begin_part(tmp_path, "text") / "train.jsonl").write_text("half")
    assert is_finished(tmp_path, "text", fingerprint(PIP))
    build_part(tmp_path, "whole")
    assert (tmp_path / "text" / "train.jsonl").read_text() == "whole"


def test_a_folder_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="does not know"):
        begin_part(tmp_path, "text")
    assert (tmp_path / "text" / "thesis.txt").exists()


def test_a_proof_lasts_until_something_is_built(tmp_path):
    record_check(tmp_path, "abc")
    assert read_manifest(tmp_path)["checked"] == "abc"
    build_part(tmp_path)
    assert "checked" not in read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"built": 3}', "\udcff"])
def test_an_unreadable_manifest_counts_as_none(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_manifest(tmp_path) == {"built": {}}


def test_the_manifest_names_every_package_with_its_licence(tmp_path):
    build_part(tmp_path)
    packages = json.loads((tmp_path / "manifest.json").read_text())["packages"]
    assert [package["name"] for package in packages] == [package.name for package in PIP.packages]
    assert all(package["sha256"] and package["license"] and package["version"] for package in packages)


def test_licences_have_a_block_for_every_package():
    text = licences(MORE)
    for package in MORE.packages:
        block = text.split(f"## {package.name} {package.version} ({package.registry})")[1].split("##")[0]
        assert package.license in block
        assert package.sha256 in block
        assert package.gives in block


def test_too_little_room_is_told_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "OUTPUT_BYTES", 10**18)
    with pytest.raises(ResourceError, match=r"has [\d.]+ GB free and the data needs 1\d{9}\.\d\d GB") as error:
        build.build(tmp_path, pip_only=True)
    assert str(tmp_path) in str(error.value)
    assert not any((tmp_path / "packages").iterdir())


def samples(count):
    shard = next((SAMPLES / "easy-vqa").glob("train-*.tar"))
    image = read_image(read_whole([shard])[0].images[0])
    return [Sample(key=f"k{n}", extension="png", image=image, text=f"text {n}", fields={"n": n}) for n in range(count)]


def test_shards_are_the_same_bytes_in_whatever_order_samples_come(tmp_path):
    for name, order in (("a", 1), ("b", -1)):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, "train", samples(30)[::order])
    shard = "train-000000.tar"
    assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_shards_and_their_index_pass_the_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("arlow_vl.data.fetch.shard_files.SAMPLES_PER_SHARD", 12)
    write_index(tmp_path, write_shards(tmp_path, "train", samples(30)), summary="Thirty images.")
    scan = verify_sources(sorted(tmp_path.glob("*.tar")))
    assert sorted(scan.keys) == sorted(f"k{n}" for n in range(30))
    assert scan.keys != [f"k{n}" for n in range(30)]
    assert not scan.tally.skipped
    assert not scan.tally.faults
