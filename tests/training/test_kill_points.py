"""Wherever a kill ends a save, what was whole before or is whole now is found, and the rest goes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Shard, distribute_tensor

from arlow_vl.errors import CheckpointError
from arlow_vl.models.folder_writing import find_changes, save_folder
from arlow_vl.training.best import finish_replacing, replace_folder
from arlow_vl.training.checkpoint_file import write_checkpoint
from arlow_vl.training.checkpoint_io import find_damage, newest_good, read_checkpoint, remove_leftovers
from arlow_vl.training.checkpoint_names import checkpoint_path, checkpoints, remove_older, step_of
from arlow_vl.training.sharded_checkpoints import ShardedWriter
from tests.training.kill_points import kill_points
from vision.whole_files import remove_remains, write_whole


def save_file(folder: Path, step: int, mesh) -> None:
    write_checkpoint({"step": step, "weights": torch.arange(3000.0) + step}, checkpoint_path(folder, step))
    remove_older(folder)


def save_in_parts(folder: Path, step: int, mesh) -> None:
    """In a thread, which removes the older ones as well."""
    tensor = distribute_tensor(torch.arange(3000.0) + step, mesh, [Shard(0)])
    writer = ShardedWriter()
    writer.begin({"step": step, "weights": tensor}, checkpoint_path(folder, step))
    writer.wait()


@pytest.mark.parametrize("save", [save_file, save_in_parts])
def test_wherever_a_save_is_killed_the_run_goes_on_from_a_whole_checkpoint(mesh, tmp_path, save):
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        save(folder, step, mesh)
    with kill_points(folder, tmp_path / "points") as states:
        save(folder, 3, mesh)
    newest = []
    for state in states:
        good = newest_good(state)
        newest.append(step_of(good))
        remove_leftovers(state, good)
        left = checkpoints(state)
        assert len(left) >= 2, state
        assert not any(map(find_damage, left)), state
        assert sorted(state.iterdir()) == sorted(left), state  # nothing half is left
        read = read_checkpoint(good)
        assert read["step"] == newest[-1] and torch.equal(read["weights"], torch.arange(3000.0) + read["step"])
    assert newest == sorted(newest)
    assert newest.count(2) >= 4 and newest.count(3) >= 2  # in front of the rename, and behind it
    assert [step_of(path) for path in checkpoints(states[-1])] == [3, 2]


class Part:
    """Something with two files, as a model has."""

    def __init__(self, word: str) -> None:
        self.word = word

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text(self.word)


def test_wherever_the_best_model_is_replaced_a_whole_one_keeps_its_place(tmp_path):
    folder = tmp_path / "run" / "best"
    save_folder([Part("first")], folder)

    def replace() -> None:
        new = folder.with_name(".best.new")
        save_folder([Part("second")], new)
        replace_folder(new, folder)

    with kill_points(folder.parent, tmp_path / "points") as states:
        replace()
    words = []
    for state in states:
        finish_replacing(state / "best")
        assert [path.name for path in state.iterdir()] == ["best"], state
        assert find_changes(state / "best") == [], state
        words.append((state / "best" / "b.txt").read_text())
    assert words == sorted(words) and set(words) == {"first", "second"}


def test_wherever_a_first_save_is_killed_there_is_a_whole_folder_or_none(tmp_path):
    folder = tmp_path / "run" / "hf"
    folder.parent.mkdir()
    with kill_points(folder.parent, tmp_path / "points") as states:
        save_folder([Part("only")], folder)
    is_there = [(state / "hf").exists() for state in states]
    assert all(find_changes(state / "hf") == [] for state, there in zip(states, is_there, strict=True) if there)
    assert is_there == sorted(is_there) and set(is_there) == {False, True}
    for state in states:  # the next attempt ends as if none had been before
        shutil.rmtree(state / "hf", ignore_errors=True)
        save_folder([Part("only")], state / "hf")
        assert [path.name for path in state.iterdir()] == ["hf"], state


def test_wherever_a_file_is_replaced_it_is_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "folder" / "facts.json"
    write_whole(path, json.dumps({"word": "old"}))
    with kill_points(path.parent, tmp_path / "points") as states:
        write_whole(path, json.dumps({"word": "new"}))
    words = []
    for state in states:
        remove_remains(state, seconds=0)
        assert [entry.name for entry in state.iterdir()] == ["facts.json"]
        words.append(json.loads((state / "facts.json").read_text())["word"])
    assert words == sorted(words, reverse=True) and set(words) == {"old", "new"}


def test_the_recording_sees_a_save_that_is_not_whole_at_once(tmp_path):
    """Else the tests above could not fail."""
    folder = tmp_path / "checkpoints"
    write_checkpoint({"step": 1}, checkpoint_path(folder, 1))
    whole = checkpoint_path(folder, 1).read_bytes()
    with kill_points(folder, tmp_path / "points") as states, open(checkpoint_path(folder, 2), "wb") as file:
        file.write(whole[:50])
        file.flush()
        checkpoint_path(folder, 1).unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        newest_good(states[-1])
    assert [len(checkpoints(state)) for state in states] == [1, 2, 1]
