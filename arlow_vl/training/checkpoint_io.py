"""Checkpoints that are whole or absent: written beside, checksummed, renamed; a damaged one is never loaded.

A file is torch.save's bytes and 40 more: a mark and the SHA-256 of what is before it. `torch.load` reads it as it is.
Where the tensors of a run lie in parts on several devices, a checkpoint is a folder (`sharded_checkpoints`).
"""

import contextlib
import hashlib
import io
import os
import pickle
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from arlow_vl.errors import CheckpointError, ResourceError
from arlow_vl.printing import print_line
from arlow_vl.training.checkpoint_names import checkpoints, step_of
from arlow_vl.training.sharded_checkpoints import PARTIAL, REST, Like, find_damage_in, read_sharded
from vision.whole_files import remove_remains, write_whole

MARK = b"ARLOWSHA"
TRAILER_BYTES = len(MARK) + 32
KEPT = 2


class ArlowCheckpointIO(CheckpointIO):
    """Lightning's door to the functions below."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path, map_location=map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        remove(Path(path))


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Raises ResourceError if it cannot be written; then the final name holds what it held before, or nothing."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    payload = buffer.getbuffer()

    def write(file: BinaryIO) -> None:
        file.write(payload)
        file.write(MARK + hashlib.sha256(payload).digest())

    try:
        write_whole(path, write)
    except OSError as error:
        raise ResourceError(_cannot_save(path, len(payload) + TRAILER_BYTES, error)) from error


def remove(path: Path) -> None:
    """A file, or a folder: under another name first, so that a kill leaves none that is half there."""
    if path.is_dir():
        gone = path.with_name(PARTIAL + path.name)
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # who writes in the background removes as well
            path.rename(gone)
            shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu", like: Like | None = None) -> dict[str, Any]:
    """Verifies, then loads tensors and plain values only, never code. A folder's tensors lie as those of `like`.

    Raises:
        CheckpointError: the path is an address, or the file is missing or damaged.
    """
    if "://" in str(path):
        raise CheckpointError(f"{path} is an address; checkpoints are read from local files only")
    damage = find_damage(Path(path))
    if damage:
        raise CheckpointError(f"checkpoint {path} is damaged ({damage}); use another one")
    if Path(path).is_dir():
        return read_sharded(read_checkpoint(Path(path) / REST), Path(path), like)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)  # the mark behind its bytes is passed by
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:  # whole, but never written by us
        raise CheckpointError(f"checkpoint {path} is not one of ours ({_first_line(error)})") from error


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, a file or a folder; None if its SHA-256 is right."""
    if path.is_dir():
        return find_damage_in(path)
    try:
        size = path.stat().st_size
        if size <= TRAILER_BYTES:
            return f"{size:,} bytes are too few"
        with open(path, "rb") as file:
            digest = _sha256_of_next(file, size - TRAILER_BYTES)
            trailer = file.read()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not trailer.startswith(MARK):
        return f"no checksum at the end of its {size:,} bytes: cut short or not a checkpoint of `arlow fit`"
    return None if trailer == MARK + digest else f"SHA-256 differs, {size:,} bytes"


def newest_good(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; None if the folder has none at all. Says on stderr what it passes over.

    Raises:
        CheckpointError: there are checkpoints and all are damaged.
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


def remove_older(folder: Path) -> None:
    """Keeps the newest two."""
    for path in checkpoints(folder)[KEPT:]:
        remove(path)


def remove_leftovers(folder: Path, newest: Path | None) -> None:
    """Removes what killed saves left behind, and the damaged checkpoints after `newest`. Needs the run's lock."""
    remove_remains(folder, seconds=0)
    for path in checkpoints(folder):
        if newest is not None and step_of(path) > step_of(newest):
            remove(path)
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def check_same_tensors(saved: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raises CheckpointError listing the first names that are missing, not expected, or of another shape or type."""
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


def _sha256_of_next(file: io.BufferedReader, count: int) -> bytes:
    digest = hashlib.sha256()
    while count and (chunk := file.read(min(count, 2**20))):
        digest.update(chunk)
        count -= len(chunk)
    return digest.digest()


def _cannot_save(path: Path, needed: int, error: OSError) -> str:
    return (
        f"cannot save {path}: {error.strerror} (needs {needed:,} bytes, {_free_bytes(path.parent):,} free); "
        "checkpoints saved before are whole"
    )


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
