"""`arlow data verify`."""

import json

import pytest

from arlow_vl.cli import main
from tests.outside_data import JPEG, samples, tar_of, write_index

TWENTY = samples(*map(str, range(20)))


@pytest.fixture
def verify(tmp_path, capsys):
    """Verifies a shard of these members: exit status, standard output and standard error."""

    def verify_bytes(data: bytes, *options: str) -> tuple[int, str, str]:
        (tmp_path / "a.tar").write_bytes(data)
        status = main(["data", "verify", *options, str(tmp_path / "a.tar")])
        return status, *capsys.readouterr()

    return verify_bytes


def test_a_good_shard_ends_with_0(verify):
    assert verify(tar_of(*TWENTY)) == (0, "20 samples can be used, 0 skipped\ntraining may start\n", "")


def test_the_texts_are_counted_where_samples_have_several(verify):
    questions = [{"question": "Is it red?", "answer": "yes"}, {"question": "Is it blue?", "answer": "no"}]
    members = [("a.jpg", JPEG), ("a.json", json.dumps({"questions": questions}).encode())]
    status, out, _ = verify(tar_of(*members))
    assert status == 0
    assert out.splitlines()[:2] == [
        "1 sample can be used, 0 skipped",
        "2 texts in it, each caption, question and conversation counted",
    ]


def test_a_wrong_sha256_ends_with_3(verify, tmp_path):
    write_index(tmp_path, samples=20, sha256="0" * 64)
    status, out, err = verify(tar_of(*TWENTY))
    assert status == 3
    assert err == "arlow: 1 fault in the files; copy or make them again before training\n" and "may start" not in out
    assert "20 samples can be used, 0 skipped, 1 shard fault\n" in out
    assert "SHA-256 differs from index.json" in out


def test_damage_ends_with_3(verify):
    assert verify(tar_of(*TWENTY)[:-600])[0] == 3


def test_bad_samples_are_named_and_end_with_3_where_they_are_too_many(verify):
    bad = [("bad\x1b.jpg", JPEG[:-9]), ("bad\x1b.txt", b"x"), ("lone.jpg", JPEG)]
    status, out, err = verify(tar_of(*TWENTY, *bad))
    assert (status, err) == (0, "")
    assert "a.tar:bad\\x1b: image_truncated" in out
    assert "a.tar:lone: missing_text" in out
    assert out.splitlines()[-2:] == [
        "docs/data.md and docs/formats.md say what each reason means",
        "training may start, and leaves out what was skipped",
    ]
    status, out, err = verify(tar_of(*TWENTY, *bad), "--max-bad-fraction", "0.05")
    assert status == 3
    assert "2 of 22 samples are unusable, the limit is 5%" in err


def test_names_with_more_dots_are_too_many_bad_samples(verify):
    lost = [member for n in range(500) for member in samples(f"photo.{n:04d}")]
    status, out, err = verify(tar_of(*TWENTY, *lost))
    assert status == 3
    assert "20 samples can be used, 500 skipped (dot_in_key 500)" in out
    assert "500 of 520 samples are unusable" in err
    assert out.count("a.tar:photo.") == 50
    assert "and 450 more; --json names them all" in out


def test_json_names_all_and_counts_members(verify):
    lost = [member for n in range(500) for member in samples(f"photo.{n:04d}")]
    questions = b'{"questions": [{"question": "?", "answer": "yes"}, {"question": "?", "answer": 3}]}'
    status, out, _ = verify(tar_of(*TWENTY, ("0.json", questions), ("0.mask.png", JPEG), *lost), "--json")
    report = json.loads(out)
    assert status == 3
    assert report["keys"] == [str(n) for n in range(20)]
    assert report["skipped"] == {"dot_in_key": 500}
    assert report["shard_faults"] == []
    assert len(report["bad_samples"]) == 500
    assert report["bad_samples"][0]["name"] == "a.tar:photo.0000"
    assert (report["questions"], len(report["bad_questions"])) == (1, 1)
    assert report["ignored"] == {".mask.png": 1}
    assert report["members"] == 40 + 2 + 1000


def test_too_many_bad_questions_end_with_3(verify):
    questions = b'{"questions": [{"question": "?", "answer": 3}]}'
    status, out, err = verify(tar_of(*TWENTY, ("0.json", questions)))
    assert status == 3
    assert "a.tar:0, question 0: answer_not_text" in out
    assert "1 of 1 questions is unusable" in err


def test_nothing_usable_ends_with_3(verify):
    assert verify(tar_of())[0] == 3


def test_a_share_that_is_none_is_refused(verify):
    status, _, err = verify(tar_of(*TWENTY), "--max-bad-fraction", "nan")
    assert status == 2
    assert "share from 0 to 1" in err


def test_other_sources_are_verified_too(tmp_path, capsys):
    chat = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "That."}]
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (tmp_path / "2.jpg").write_bytes(JPEG[:-9])
    records = [{"messages": chat, "images": [f"{n}.jpg"]} for n in (1, 2)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["data", "verify", str(tmp_path / "chats.jsonl"), "--max-bad-fraction", "0.5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 sample can be used, 1 skipped (image_truncated 1)\n")
    assert f"image_truncated: {tmp_path}/2.jpg" in out
    assert main(["data", "verify", str(tmp_path / "chats.jsonl"), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (len(report["keys"]), report["texts"], report["questions"], report["bad_texts"]) == (1, 1, 0, [])


def test_no_source_there_is_one_sentence(tmp_path, capsys):
    assert main(["data", "verify", str(tmp_path / "gone.tar")]) == 3
    assert "no such file or folder" in capsys.readouterr().err
