"""`arlow checkpoint verify`: ok, or what is damaged and exit status 4."""

import pytest
import torch

from arlow_vl.cli import main
from arlow_vl.training.checkpoint_file import write_checkpoint
from arlow_vl.training.checkpoint_names import checkpoint_path


@pytest.fixture
def run_dir(tmp_path):
    for step in (5, 10):
        write_checkpoint({"w": torch.zeros(100)}, checkpoint_path(tmp_path / "checkpoints", step))
    return tmp_path


@pytest.mark.parametrize("path", [".", "checkpoints", "checkpoints/step-000005.ckpt"])
def test_whole_checkpoints_are_ok(run_dir, path, capsys):
    assert main(["checkpoint", "verify", str(run_dir / path)]) == 0
    assert capsys.readouterr().out == "ok\n"


@pytest.mark.parametrize("path", [".", "checkpoints", "checkpoints/step-000005.ckpt"])
def test_damage_is_named(run_dir, path, capsys):
    damaged = run_dir / "checkpoints" / "step-000005.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert main(["checkpoint", "verify", str(run_dir / path)]) == 4
    told = capsys.readouterr()
    (line,) = told.out.splitlines()
    assert line.startswith(f"{damaged}: ")
    assert told.err.startswith(f"arlow: {run_dir / path}: 1 fault in the files; ")


def test_a_folder_without_checkpoints_is_an_error(tmp_path, capsys):
    assert main(["checkpoint", "verify", str(tmp_path)]) == 4
    assert "holds no checkpoint" in capsys.readouterr().err


def test_a_missing_file_is_an_error(tmp_path, capsys):
    assert main(["checkpoint", "verify", str(tmp_path / "step-000001.ckpt")]) == 4
    assert "no such file or folder" in capsys.readouterr().err
