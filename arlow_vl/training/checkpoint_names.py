"""Names of the checkpoints in a run folder, by the optimizer step that each was saved after, and their removal."""

import contextlib
import re
import shutil
from pathlib import Path

NAME = re.compile(r"step-(\d{6,})\.ckpt")
PARTIAL = ".partial-"
"""Prefix of a folder that is being written or removed."""
KEPT = 2
"""Checkpoints that stay in a run folder: the newest, and one more in case it is damaged."""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.ckpt"


def step_of(path: Path) -> int:
    """Returns the optimizer step in a checkpoint's name."""
    return int(NAME.fullmatch(path.name)[1])


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, newest first."""
    return sorted((path for path in folder.glob("step-*.ckpt") if NAME.fullmatch(path.name)), key=step_of, reverse=True)


def steps_done(run_dir: Path) -> int:
    """Returns the optimizer step of a run's newest checkpoint, 0 if there is none."""
    found = checkpoints(run_dir / "checkpoints")
    return step_of(found[0]) if found else 0


def remove(path: Path) -> None:
    """Removes a checkpoint, a file or a folder; does nothing if it is gone already.

    A folder is renamed first, so that a kill never leaves half of it under the name of a checkpoint.
    """
    if path.is_dir():
        gone = path.with_name(PARTIAL + path.name)
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # the background writer may have removed it
            path.rename(gone)
            shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def remove_older(folder: Path) -> None:
    """Removes all checkpoints of a folder but the newest two."""
    for path in checkpoints(folder)[KEPT:]:
        remove(path)
