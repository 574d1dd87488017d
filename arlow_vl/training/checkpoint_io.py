"""Reading of checkpoints, which are verified first: a damaged one is passed over, never loaded.

A checkpoint is one file (`checkpoint_file`), or a folder where the tensors of a run are sharded over several devices
(`sharded_checkpoints`).
"""

import pickle
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from arlow_vl.errors import CheckpointError
from arlow_vl.printing import print_line
from arlow_vl.training.checkpoint_file import find_file_damage, first_line, write_checkpoint
from arlow_vl.training.checkpoint_names import PARTIAL, checkpoints, remove, step_of
from arlow_vl.training.sharded_checkpoints import REST, find_folder_damage, read_sharded
from vision.whole_files import remove_remains


class ArlowCheckpointIO(CheckpointIO):
    """Plugin through which Lightning's Trainer writes and reads our checkpoints."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path, map_location=map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        remove(Path(path))


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Returns the content of a checkpoint after verifying it; loads tensors and plain values only, never code.

    Raises:
        CheckpointError: the path is an address, or the file is missing or damaged.
    """
    if "://" in str(path):
        raise CheckpointError(f"{path} is an address; checkpoints are read from local files only")
    damage = find_damage(Path(path))
    if damage:
        raise CheckpointError(f"checkpoint {path} is damaged ({damage}); use another one")
    if Path(path).is_dir():
        return read_sharded(read_checkpoint(Path(path) / REST), Path(path), like=None)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)  # ignores the mark and hash
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:  # whole, but never written by us
        raise CheckpointError(f"checkpoint {path} is not one of ours ({first_line(error)})") from error


def find_damage(path: Path) -> str | None:
    """Returns a description of the damage to a checkpoint, a file or a folder; None if it is whole."""
    return find_folder_damage(path) if path.is_dir() else find_file_damage(path)


def newest_good(folder: Path) -> Path | None:
    """Returns the newest undamaged checkpoint, None if the folder has no checkpoint; names skipped ones on stderr.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged.
    """
    found = checkpoints(folder)
    damages = []
    for path in found:
        damage = find_damage(path)
        if damage is None:
            if damages:
                print_line(f"arlow: {'; '.join(damages)}; using {path.name}", file=sys.stderr)
            return path
        damages.append(f"checkpoint {path} is damaged ({damage})")
    if damages:
        raise CheckpointError(f"{'; '.join(damages)}; there is no other, so use another run_dir to start again")
    return None


def remove_leftovers(folder: Path, newest: Path | None) -> None:
    """Removes the remains of killed saves, and all checkpoints after `newest`, which are damaged.

    The caller must hold the lock of the run.
    """
    remove_remains(folder, seconds=0)
    for path in checkpoints(folder):
        if newest is not None and step_of(path) > step_of(newest):
            remove(path)
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def check_same_tensors(saved: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raises CheckpointError with the first names that are missing, unexpected, or of another shape or dtype."""
    differences = [f"{name} is missing" for name in expected if name not in saved]
    differences += [f"{name} is not in this model" for name in saved if name not in expected]
    for name in (name for name in expected if name in saved):
        was, now = saved[name], expected[name]
        if was.shape != now.shape or was.dtype != now.dtype:
            differences.append(f"{name} is {_kind(was)}, this model has {_kind(now)}")
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise CheckpointError(f"the checkpoint is of another model: {'; '.join(differences[:5])}{more}")


def _kind(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
