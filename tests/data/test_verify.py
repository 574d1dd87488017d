"""Verifying: every image of every format is decoded, and every sample that cannot be used is named."""

import json

import pytest

from arlow_vl.data import verify as verifying
from arlow_vl.data.remote import PATIENCE
from arlow_vl.data.samples import ImageRef
from arlow_vl.data.verify import Verified, verify_sources
from arlow_vl.errors import DataError
from tests.outside_data import JPEG, png, samples, tar_of, write_index

CUT = JPEG[:-9]
PNG = png(3, 2, bytes(6))


@pytest.fixture
def verify(tmp_path):
    """Verifies a shard of these members."""

    def verify_members(*members: tuple[str, bytes], **how) -> Verified:
        (tmp_path / "a.tar").write_bytes(tar_of(*members))
        return verify_sources([tmp_path / "a.tar"], **how)

    return verify_members


def chat(places: int) -> dict:
    content = [{"type": "image"} for _ in range(places)] + [{"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "That."}]}


def as_json(value) -> bytes:
    return json.dumps(value).encode()


def test_a_conversation_alone_makes_a_sample_good(verify):
    found = verify(("a.jpg", JPEG), ("a.json", as_json(chat(1))), ("b.json", as_json(chat(0))))
    assert (found.keys, found.tally.bad, found.tally.texts) == (["a", "b"], [], 2)


def test_every_image_of_a_sample_is_decoded(verify):
    images = [("a.0.jpg", JPEG), ("a.1.jpg", CUT), ("b.0.jpg", JPEG), ("b.1.png", PNG)]
    found = verify(*images, ("a.json", as_json(chat(2))), ("b.json", as_json(chat(2))))
    assert found.keys == ["b"]
    (bad,) = found.tally.bad
    assert bad[:5] == ("a.tar:a", "image_truncated", 3, 1, ": image 1")
    assert found.members == 6


def test_bad_images_are_skipped_by_reason_and_every_member_is_counted(verify):
    bad = {"cut": CUT, "none": b"", "text": b"hello", "bomb": png(20_000, 20_000)}
    members = [member for key, data in bad.items() for member in ((f"{key}.jpg", data), (f"{key}.txt", b"x"))]
    found = verify(*samples("good"), *members)
    reasons = ["image_empty", "image_not_an_image", "image_too_many_pixels", "image_truncated"]
    assert (found.keys, sorted(found.tally.skipped)) == (["good"], reasons)
    assert found.tally.examples["image_truncated"] == "a.tar:cut"
    assert found.members == sum(sample.members for sample in [*found.samples, *found.tally.bad]) == 10


def test_the_sha256_of_the_index_is_compared_and_told_with_other_damage(verify, tmp_path):
    write_index(tmp_path, samples=1, sha256="0" * 64)
    (fault,) = verify(*samples("0")).tally.faults
    assert fault.reason == "SHA-256 differs from index.json"
    write_index(tmp_path, samples=3, sha256="0" * 64)
    (fault,) = verify(*samples("0")).tally.faults
    assert fault.reason == "index.json says 3 samples, read 1; SHA-256 differs from index.json"
    assert fault.missing == 2


def test_nothing_usable_is_a_result(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    found = verify_sources([tmp_path / "a.tar"])
    assert (found.keys, dict(found.tally.skipped), len(found.tally.faults)) == ([], {}, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_found_does_not_depend_on_the_number_of_processes(tmp_path, workers):
    for name in ("a.tar", "b.tar"):
        members = [(f"{n:03d}.jpg", CUT if n % 50 == 7 else JPEG) for n in range(150)]
        (tmp_path / name).write_bytes(tar_of(*members, *((f"{n:03d}.txt", b"x") for n in range(150))))
    told = []
    found = verify_sources([tmp_path], workers=workers, progress=lambda *counts: told.append(counts))
    bad = [f"{shard}.tar:{n:03d}" for shard in "ab" for n in (7, 57, 107)]
    assert [sample.name for sample in found.tally.bad] == bad
    assert found.keys == [f"{s}.tar:{n:03d}" for s in "ab" for n in range(150) if n % 50 != 7]
    assert told[-1] == (300, 2, 2)


def test_a_folder_of_images_with_a_table_is_verified_and_files_are_named(tmp_path):
    for name, data in {"good.jpg": JPEG, "cut.jpg": CUT}.items():
        (tmp_path / name).write_bytes(data)
    lines = ["file_name,text", "good.jpg,fine", "cut.jpg,broken", "gone.jpg,away", "good.jpg,"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    found = verify_sources([tmp_path])
    assert len(found.samples) == 1
    assert found.tally.skipped["image_truncated"] == found.tally.skipped["missing_image_file"] == 1
    assert found.tally.examples["image_truncated"].endswith(f": {tmp_path}/cut.jpg")


def test_questions_of_a_question_file_count_as_questions(tmp_path):
    (tmp_path / "1.jpg").write_bytes(JPEG)
    records = [{"image": "1.jpg", "question": "Is it?", "answer": answer} for answer in ("yes", "", 3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = verify_sources([tmp_path / "q.jsonl"])
    assert found.tally.questions == 1
    assert len(found.tally.bad) + len(found.tally.bad_texts) == 2


def test_images_inside_records_are_decoded(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"bytes": data, "path": None}, "text": f"no. {n}"} for n, data in enumerate((JPEG, CUT, PNG))]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = verify_sources([tmp_path / "a.parquet"])
    assert (len(found.samples), dict(found.tally.skipped)) == (2, {"image_truncated": 1})


def test_several_sources_are_one_result_and_their_keys_are_told_apart(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(*samples("0"), ("1.jpg", CUT), ("1.txt", b"x")))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(CUT)
    (tmp_path / "photos" / "0.txt").write_text("a text")
    found = verify_sources([tmp_path / "a.tar", tmp_path / "photos"])
    assert found.keys == ["0"]
    assert [bad.name.partition(":")[0] for bad in found.tally.bad] == ["a.tar", "photos"]


def test_keys_that_two_shards_share_are_told_apart(tmp_path):
    for name, keys in {"a.tar": ("0", "1"), "b.tar": ("1", "2")}.items():
        (tmp_path / name).write_bytes(tar_of(*samples(*keys)))
    assert verify_sources([tmp_path / "a.tar", tmp_path / "b.tar"]).keys == ["0", "a.tar:1", "b.tar:1", "2"]


def with_table(folder, name: str, *rows: str):
    """A table, as `data/a/captions.csv`, whose images are there but for those called gone."""
    (folder / name).mkdir()
    (folder / name / "0.jpg").write_bytes(JPEG)
    (folder / name / "captions.csv").write_text("\n".join(["file_name,text", *rows]) + "\n")
    return folder / name / "captions.csv"


def test_the_limit_is_of_each_source_by_itself(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(*samples(*map(str, range(40)))))
    table = with_table(tmp_path, "b", "0.jpg,here", "gone.jpg,away")
    found = verify_sources([tmp_path / "a.tar", table])
    with pytest.raises(DataError, match=r"b/captions\.csv: 1 of 2 samples is unusable, the limit is 10%"):
        found.check()
    found.check(0.5)


def test_every_source_has_to_hold_something(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(*samples("0")))
    with pytest.raises(DataError, match=r"b/captions\.csv: nothing there can be used; name other data"):
        verify_sources([with_table(tmp_path, "b"), tmp_path / "a.tar"]).check()


def test_sources_of_one_name_are_told_apart_by_their_folders(tmp_path):
    tables = [with_table(tmp_path, name, "0.jpg,here", "gone.jpg,away") for name in "ab"]
    found = verify_sources(tables)
    assert found.keys == ["a/captions.csv:0.jpg", "b/captions.csv:0.jpg"]
    assert [bad.name.partition(": ")[0] for bad in found.tally.bad] == [
        "a/captions.csv:captions.csv",
        "b/captions.csv:captions.csv",
    ]


@pytest.mark.parametrize("address", ["pipe:touch sentinel", "ftp://127.0.0.1:9/a.tar", "file:a.tar"])
def test_pipes_and_other_schemes_are_never_followed(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vars(PATIENCE), "retry_seconds", 0.5)
    with pytest.raises(DataError):
        verify_sources([address])
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(*samples("0")))
    with pytest.raises(DataError, match=r"a\.tar is named twice; name each source once"):
        verify_sources([tmp_path / "a.tar", tmp_path])


def test_an_image_that_went_away_meanwhile_costs_its_sample_alone(tmp_path):
    gone = ImageRef(str(tmp_path / "gone.jpg"), 0, 100)
    faults = verifying._do([(3, (gone,)), (4, (JPEG,))])
    assert list(faults) == [3]
    assert faults[3][0] == "image_unreadable"
    assert "gone.jpg" in faults[3][1]
