"""One process at a time in a folder."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def one_process(path: Path, refusal: Callable[[str], Exception]) -> Iterator[None]:
    """Holds a lock file, in which the process's number stands, while the folder around it is written.

    The kernel lets go of it when the process ends, however that happens. Raises `refusal(number)` of the process that
    holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise refusal(file.read().strip() or "?") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
