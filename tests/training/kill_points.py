"""What a kill could leave of a folder: its state in front of each call that changes or opens a file.

A kill ends a process between two system calls. Python tells of those on files beforehand (audit events), so that
copying the folder at each such event gives every state that a kill there would leave, without killing anything. What
other threads write meanwhile is in it too. Not seen: how much of a file's bytes is written between its opening and the
next event.
"""

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")


class _Recorder:
    """One hook for all recordings, as Python cannot take one away."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.copies: Path | None = None
        self.busy = threading.RLock()
        self.is_copying = False
        self.is_hooked = False

    def on_event(self, event: str, arguments: tuple) -> None:
        if self.folder is None or event not in EVENTS:
            return
        with self.busy:
            if self.folder is None or self.is_copying or not self._is_of_folder(event, arguments):
                return
            self.is_copying = True
            try:
                shutil.copytree(self.folder, self.copies / f"{len(list(self.copies.iterdir())):04d}", symlinks=True)
            finally:
                self.is_copying = False

    def _is_of_folder(self, event: str, arguments: tuple) -> bool:
        """Also where a name is relative to an open folder, as those are that `shutil.rmtree` removes."""
        names = arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]
        paths = [Path(os.fsdecode(name)) for name in names if not isinstance(name, int)]
        return any(path.is_relative_to(self.folder) or not path.is_absolute() for path in paths)


_RECORDER = _Recorder()


@contextlib.contextmanager
def kill_points(folder: Path, copies: Path) -> Iterator[list[Path]]:
    """Filled at the end with copies of `folder`, one for each point at which a kill inside could have ended; the last
    is of the end."""
    if not _RECORDER.is_hooked:
        sys.addaudithook(_RECORDER.on_event)
        _RECORDER.is_hooked = True
    copies.mkdir()
    found: list[Path] = []
    _RECORDER.copies, _RECORDER.folder = copies, folder
    try:
        yield found
    finally:
        _RECORDER.folder = None
    shutil.copytree(folder, copies / "end", symlinks=True)
    found += sorted(copies.iterdir())
