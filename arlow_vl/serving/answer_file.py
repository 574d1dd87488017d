"""JSON lines of answers that are appended while a job runs, so that a stopped job resumes where it was.

captions.jsonl              {"image": "photos/fox.jpg", "caption": "a fox in the snow", ...}    one line per image
captions.jsonl.meta.json    {"weights": "9f86d0...", "question": null, "decoding": {...}}       their settings

Lines are added in one write, so a killed process leaves at most a partial last line, which is removed when the job
resumes.
"""

import json
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from arlow_vl.errors import DataError
from arlow_vl.json_text import json_text
from arlow_vl.locks import take_lock, warn_unlocked
from arlow_vl.printing import visible
from vision.whole_files import remove_remains, write_whole

META = ".meta.json"


class AnswerFile:
    """An open answer file, locked by one process at a time."""

    def __init__(self, path: Path, asked: Mapping[str, Any], options: Mapping[str, str] = {}) -> None:
        """Opens or creates a file for answers with the settings `asked`; `options` maps names of settings to the
        command-line options that error messages show.

        Raises:
            DataError: the file holds something else, or answers with other settings, or another process is writing it.
            OSError: it cannot be written.
        """
        self.path = path
        asked = json.loads(json.dumps(asked))  # as a file gives it back
        meta = path.with_name(path.name + META)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)  # waits for no pipe
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise DataError(f"{self._name} is a device or a pipe, where no job could resume; name a file")
            self._lock()
            remove_remains(path.parent, meta.name, seconds=0)  # of a process that was killed
            if os.fstat(self._file).st_size == 0:
                write_whole(meta, json_text(asked, indent=2) + "\n")
            else:
                self._refuse_other(meta, asked, options)
            self.done = self._read_done()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines. An OSError leaves the file as it was; an interrupt after the last byte keeps the lines."""
        lines = list(lines)
        names = {line["image"] for line in lines}
        before = os.fstat(self._file).st_size
        data = "".join(json_text(line) + "\n" for line in lines).encode()
        end = before + len(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except BaseException as error:
            if os.fstat(self._file).st_size == end:
                self.done |= names
            else:
                os.ftruncate(self._file, before)
                os.lseek(self._file, before, os.SEEK_SET)
            if isinstance(error, OSError):
                error.filename = str(self.path)
            raise
        self.done |= names

    def _lock(self) -> None:
        try:
            if not take_lock(self._file):
                warn_unlocked(self.path)
        except BlockingIOError:
            raise DataError(f"{self._name} is being written by another process; wait for it or name another") from None

    def _refuse_other(self, meta: Path, asked: Mapping[str, Any], options: Mapping[str, str]) -> None:
        try:
            found = json.loads(meta.read_text("utf-8"))
            if not isinstance(found, dict):
                raise ValueError
        except (OSError, ValueError):
            raise DataError(
                f"{self._name} exists, but {visible(meta.name)} beside it does not say how it was written; "
                "name another file, or remove it"
            ) from None
        different = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
        if different:
            changes = ", ".join(_describe_change(name, found.get(name), asked.get(name), options) for name in different)
            raise DataError(f"{self._name} was written in another way ({changes}); name another file, or remove it")

    def _read_done(self) -> set[str]:
        """Returns the images that have a line, and removes a partial last line that a killed process left."""
        done: set[str] = set()
        end = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                done.add(self._image_of(line, number))
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        return done

    def _image_of(self, line: bytes, number: int) -> str:
        try:
            image = json.loads(line)["image"]
        except (ValueError, KeyError, TypeError, RecursionError):
            image = None
        if not isinstance(image, str):
            raise DataError(f"{self._name}: line {number:,} is not an answer about an image; name another file")
        return image

    @property
    def _name(self) -> str:
        return visible(str(self.path))


def left_to_do(paths: Iterable[str], done: Collection[str]) -> list[str]:
    """Returns the paths that are not done, each once."""
    return [path for path in dict.fromkeys(paths) if path not in done]


def _describe_change(name: str, found: Any, asked: Any, options: Mapping[str, str]) -> str:
    """Describes a changed setting, as `--beams 3, now 1`; of a mapping, only the keys that differ."""
    if isinstance(found, dict) and isinstance(asked, dict):
        different = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
        return ", ".join(_describe_change(key, found.get(key), asked.get(key), options) for key in different)
    return visible(f"{options.get(name, name)} {_short(found)}, now {_short(asked)}")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
