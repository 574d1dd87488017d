"""What the checkpoints of a run folder are called: by the optimizer step that each was saved behind."""

import re
from pathlib import Path

NAME = re.compile(r"step-(\d{6,})\.ckpt")


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.ckpt"


def step_of(path: Path) -> int:
    return int(NAME.fullmatch(path.name)[1])


def checkpoints(folder: Path) -> list[Path]:
    """A folder's checkpoints, the newest first."""
    return sorted((path for path in folder.glob("step-*.ckpt") if NAME.fullmatch(path.name)), key=step_of, reverse=True)


def steps_done(run_dir: Path) -> int:
    """Optimizer steps of a run that its newest checkpoint holds; 0 where there is none."""
    found = checkpoints(run_dir / "checkpoints")
    return step_of(found[0]) if found else 0
