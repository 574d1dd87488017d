"""quarantine.jsonl of a run folder: every sample that turned out unusable during the run, one a line.

    {"source": "captions", "key": "train-000017.tar:000413", "reason": "truncated", "detail": "cannot be decoded (...)"}

A sample is met again in every epoch, and after a resume the batches since the last checkpoint are read again. So the
file itself is the record: it is read before the first line is added, and a line is added under a lock of all processes
of the run. On a file system without locks a line that two processes add at once may be doubled or broken.
"""

import json
import os
from pathlib import Path

from arlow_vl.data.bad_items import Fault
from arlow_vl.json_text import json_text
from arlow_vl.locks import take_lock
from vision.decoding.names import printable

NAME = "quarantine.jsonl"
MOST_LINES = 10_000
"""Limit on the lines of a file; `arlow data verify` lists every bad sample."""
KEY_CHARACTERS = 1000
DETAIL_CHARACTERS = 500
LAST_LINE = {"more": "the list ends here; `arlow data verify` names every bad sample"}


class Quarantine:
    """Adds to the file, never a sample twice, however many processes do so and however often they are killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: set[tuple[str, str]] = set()
        """Source and key of every line up to `_end`."""
        self._end = 0

    def add(self, fault: Fault) -> None:
        """Writes a line unless the sample has one, or the file is full.

        Raises:
            OSError: the file cannot be written; the error names it.
        """
        name = fault.source, fault.name[:KEY_CHARACTERS]
        if name in self.known or len(self.known) > MOST_LINES:
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            take_lock(descriptor, waits=True)
            self._catch_up(descriptor)
            if name not in self.known and len(self.known) <= MOST_LINES:
                self._write(descriptor, _facts(fault) if len(self.known) < MOST_LINES else LAST_LINE)
                self.known.add(name)
        except OSError as error:
            error.filename = str(self.path)
            raise
        finally:
            os.close(descriptor)

    def _catch_up(self, descriptor: int) -> None:
        """Reads the lines that were added since; half a line that a killed process left is removed."""
        size = os.fstat(descriptor).st_size
        if size < self._end:  # someone has emptied it
            self.known, self._end = set(), 0
        written = b""
        while len(written) < size - self._end:
            part = os.pread(descriptor, size - self._end - len(written), self._end + len(written))
            if not part:
                break
            written += part
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            os.ftruncate(descriptor, self._end + whole)
        self._end += whole
        self.known.update(map(_name_in, written[:whole].splitlines()))

    def _write(self, descriptor: int, facts: dict[str, str]) -> None:
        line = json_text(facts).encode() + b"\n"
        done = 0
        while done < len(line):
            done += os.write(descriptor, line[done:])
        os.fsync(descriptor)
        self._end += len(line)


def _facts(fault: Fault) -> dict[str, str]:
    detail = fault.sentence.removeprefix(f"{printable(fault.name)}: ").removesuffix(f" ({fault.reason})")
    key = fault.name[:KEY_CHARACTERS]
    return {"source": fault.source, "key": key, "reason": fault.reason, "detail": detail[:DETAIL_CHARACTERS]}


def _name_in(line: bytes) -> tuple[str, str]:
    """Returns source and key of a line; a foreign line counts too, so that the file stays bounded."""
    try:
        facts = json.loads(line)
        return facts["source"], facts["key"]
    except (ValueError, KeyError, TypeError):
        return "", line.decode(errors="replace")
