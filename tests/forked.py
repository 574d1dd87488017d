"""`python -m MODULE` and `python -c CODE` in processes that start at once.

They are processes of their own: nothing of ours is imported in them, nor is what the tests have set. But torch,
transformers, timm and Lightning are there already, since they are forked from a server that has imported these and does
nothing else (multiprocessing's fork server; each process that runs tests has one, from the first time it needs one).
A command for which how it starts is what is tested takes `subprocess`.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

STARTED_BY = "ARLOW_STARTED_BY"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])


class Forked(subprocess.Popen):
    """As much of it as is needed; what is written goes to files until somebody asks."""

    _child_created = False  # by `subprocess`, whose own clean-up has nothing to do

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, **_settings) -> None:
        assert command[0] == sys.executable and command[1] in ("-m", "-c"), command
        self.args, self._files = list(command), [tempfile.mkstemp() for _ in range(2)]
        for file, _ in self._files:
            os.close(file)
        names = [name for _, name in self._files]
        self._process = SERVER.Process(
            target=main, args=(self.args[1:], dict(os.environ if env is None else env), os.getcwd(), names)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return tuple(Path(name).read_text() for _, name in self._files)


def main(words: list[str], variables: dict[str, str], folder: str, files: list[str]) -> None:
    for number, name in zip((1, 2), files, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    if STARTED_BY in variables:  # with whom a process of a run ends: here the server is its parent
        os.environ[STARTED_BY] = str(os.getppid())
    sys.argv = ["-m" if words[0] == "-m" else "-c", *words[2:]]
    sys.path[:0] = [folder]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})


def run(command: Sequence[str], **settings) -> SimpleNamespace:
    """As `subprocess.run` with its output as text."""
    process = Forked(command, **settings)
    out, err = process.communicate()
    return SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)


by_fork = SimpleNamespace(Popen=Forked, run=run)
"""To stand in a module for `subprocess`."""
