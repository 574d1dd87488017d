"""Checkpoints are whole or absent; damage is found, named and passed over."""

import os
import resource
import subprocess
import sys
import time
import tracemalloc

import pytest
import torch

from arlow_vl.errors import CheckpointError, ResourceError
from arlow_vl.training.checkpoint_file import write_checkpoint
from arlow_vl.training.checkpoint_io import (
    check_same_tensors,
    find_damage,
    newest_good,
    read_checkpoint,
    remove_leftovers,
)
from arlow_vl.training.checkpoint_names import checkpoint_path, checkpoints, remove_older


def save(folder, step: int):
    path = checkpoint_path(folder, step)
    write_checkpoint({"step": step, "weights": torch.arange(5000.0) + step}, path)
    return path


def test_a_file_is_not_read_into_memory_beside_its_tensors(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint({"weights": torch.ones(2 * 10**6)}, path)
    tracemalloc.start()  # of Python's memory, in which no tensors are
    loaded = read_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded["weights"].sum() == 2 * 10**6 and peak < 3 * 10**6


def flip_a_bit(path, where: int = 3000) -> None:
    data = bytearray(path.read_bytes())
    data[where] ^= 16
    path.write_bytes(data)


def test_what_was_written_is_read(tmp_path):
    loaded = read_checkpoint(save(tmp_path, 7))
    assert loaded["step"] == 7
    assert torch.equal(loaded["weights"], torch.arange(5000.0) + 7)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000007.ckpt"]


def test_torch_reads_the_file_as_it_is(tmp_path):
    assert torch.load(save(tmp_path, 7), weights_only=True)["step"] == 7


MUTATIONS = {
    "a flipped bit in a tensor": lambda data: data[:9000] + bytes([data[9000] ^ 1]) + data[9001:],
    "4 KiB of zeros": lambda data: data[:4096] + bytes(4096) + data[8192:],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut by one byte": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "halves swapped": lambda data: data[len(data) // 2 :] + data[: len(data) // 2],
    "text": lambda data: b"hello " * 100,
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_damage_is_found(tmp_path, mutation):
    path = save(tmp_path, 1)
    path.write_bytes(mutation(path.read_bytes()))
    assert find_damage(path)
    with pytest.raises(CheckpointError, match=r"step-000001.ckpt is damaged"):
        read_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"step-000009.ckpt is damaged \(cannot be read: No such file"):
        read_checkpoint(checkpoint_path(tmp_path, 9))


def test_an_address_is_refused():
    with pytest.raises(CheckpointError, match="is an address"):
        read_checkpoint("http://localhost/step-000001.ckpt")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("sentinel",))


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint({"evil": Evil()}, checkpoint_path(tmp_path, 1))
    with pytest.raises(CheckpointError, match="is not one of ours"):
        read_checkpoint(checkpoint_path(tmp_path, 1))
    assert not (tmp_path / "sentinel").exists()


def test_the_newest_two_are_kept(tmp_path):
    for step in (5, 10, 1000000, 15):
        save(tmp_path, step)
    remove_older(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1000000.ckpt", "step-000015.ckpt"]


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_good(tmp_path / "nowhere") is None


def test_a_damaged_checkpoint_is_passed_over_in_one_line(tmp_path, capsys):
    older, newer = save(tmp_path, 5), save(tmp_path, 10)
    flip_a_bit(newer)
    assert newest_good(tmp_path) == older
    (line,) = capsys.readouterr().err.splitlines()
    assert "step-000010.ckpt is damaged (SHA-256 differs" in line
    assert line.endswith("using step-000005.ckpt")


def test_with_all_damaged_the_run_does_not_start_from_scratch(tmp_path):
    for step in (5, 10):
        flip_a_bit(save(tmp_path, step))
    with pytest.raises(CheckpointError, match=r"step-000010.ckpt is damaged .*step-000005.ckpt is damaged"):
        newest_good(tmp_path)


def test_leftovers_of_killed_saves_and_newer_damaged_files_are_removed(tmp_path):
    good = save(tmp_path, 5)
    flip_a_bit(save(tmp_path, 10))
    (tmp_path / ".step-000015.ckpt.99.partial").write_bytes(b"half")
    remove_leftovers(tmp_path, good)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005.ckpt"]


def test_a_full_disk_is_an_error_with_sizes_and_leaves_older_checkpoints_whole(tmp_path):
    older = save(tmp_path, 5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            ResourceError, match=r"cannot save .*step-000006.ckpt: .* \(needs 2\d,\d+ bytes, [\d,]+ free\)"
        ):
            save(tmp_path, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [older.name]
    assert find_damage(older) is None


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match=r"cannot save .*step-000001.ckpt"):
        save(tmp_path / "checkpoints", 1)


@pytest.mark.slow
def test_a_kill_during_saves_leaves_only_whole_checkpoints(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from arlow_vl.training.checkpoint_file import write_checkpoint\n"
        "from arlow_vl.training.checkpoint_names import checkpoint_path\n"
        "for step in range(10**6):\n"
        "    write_checkpoint({'w': torch.zeros(500_000)}, checkpoint_path(Path(sys.argv[1]), step % 3))\n"
        "    print(step, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.037)
        process.kill()
    assert len(checkpoints(tmp_path)) == 3
    assert not any(map(find_damage, checkpoints(tmp_path)))


def test_tensors_of_another_model_are_listed():
    saved = {"a": torch.zeros(2), "b": torch.zeros(3), "d": torch.zeros(1, dtype=torch.bfloat16)}
    expected = {"a": torch.zeros(2), "b": torch.zeros(4), "c": torch.zeros(1), "d": torch.zeros(1)}
    with pytest.raises(CheckpointError) as refusal:
        check_same_tensors(saved, expected)
    for part in ("c is missing", "b is [3] float32, this model has [4] float32", "d is [1] bfloat16"):
        assert part in str(refusal.value)
