"""Processes of a run: their launcher, the rank of this one, and how `arlow fit` starts several on one machine.

A run of one process needs none of this. Several find their ranks in the variables of torchrun (RANK, WORLD_SIZE,
LOCAL_RANK) or srun. Without a launcher, `arlow fit` starts `run.engine.devices` processes of itself.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arlow_vl.cores import cores
from arlow_vl.printing import number_of, print_line
from arlow_vl.training.settings import EngineConfig

LOST = 69
"""Exit status of a process that ends because another one ended (EX_UNAVAILABLE of sysexits.h)."""
STARTED_BY = "ARLOW_STARTED_BY"
"""Environment variable with the id of the process that started this one; when that ends, so does this one."""
GRACE_SECONDS = 10.0
"""Time that the other processes have to report and end, after one has failed, before they are killed."""
PROCESSES_A_CORE = 4
"""Limit of processes for each core; more than one is slow, but lets a laptop try a run of a cluster."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
COMMAND = (sys.executable, "-P", "-m", "arlow_vl.cli", "fit")  # -P: no module of the current folder
PACKAGES = Path(__file__).parents[2]
"""Folder of this code, which the processes run too; it may be a checkout that is not installed."""


@dataclass(frozen=True)
class ProcessRank:
    """Position of this process in its run."""

    rank: int = 0
    """Number among all processes."""
    local_rank: int = 0
    """Number among the processes of its machine, and of its device there."""
    world_size: int = 1
    """Number of processes."""

    @property
    def is_first(self) -> bool:
        """True for the first process, the only one that writes files and prints."""
        return self.rank == 0


def find_place(engine: EngineConfig, variables: Mapping[str, str] = os.environ) -> ProcessRank:
    """Returns the place of this process, read from the launcher's environment variables.

    Raises:
        ValueError: they give another number of processes than the recipe, or no valid rank.
    """
    wanted = engine.world_size
    asked = f"run.engine asks for {number_of(engine.devices, 'device')} on {number_of(engine.nodes, 'node')}"
    for launcher, names in (
        ("torchrun", ("WORLD_SIZE", "RANK", "LOCAL_RANK")),
        ("srun", ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")),
        ("mpirun", ("OMPI_COMM_WORLD_SIZE",)),
    ):
        size, *numbers = names
        count = variables.get(size) or "1"
        if count == "1" and (launcher != "torchrun" or not variables.get("RANK")):
            continue
        if count != str(wanted):
            raise ValueError(
                f"{size} is {count}, but {asked}: set run.engine.devices and nodes to what the launcher starts, or "
                f"start `arlow fit` by itself and unset {size}"
            )
        if launcher == "mpirun" or any(not variables.get(name, "").isdigit() for name in numbers):
            missing = next((name for name in numbers if not variables.get(name, "").isdigit()), "RANK")
            what = f"is {variables[missing]!r}, no number" if variables.get(missing) else "is not set"
            raise ValueError(f"{size} is {count}, but {missing} {what}: start the run with torchrun or srun")
        rank, local_rank = (int(variables[name]) for name in numbers)
        for name, number, most in zip(numbers, (rank, local_rank), (wanted, engine.devices), strict=True):
            if number >= most:
                raise ValueError(
                    f"{name} is {number}, but {asked}, so the highest is {most - 1}: set run.engine.devices and "
                    f"nodes to what the launcher starts, or unset {name}"
                )
        return ProcessRank(rank, local_rank, wanted)
    if wanted > 1:
        raise ValueError(
            f"{asked}, but this is one process: start it with `arlow fit`, "
            "or on several nodes with torchrun or srun (experiments/cluster)"
        )
    return ProcessRank()


def starts_processes(engine: EngineConfig, variables: Mapping[str, str] = os.environ) -> bool:
    """Returns True if `arlow fit` must start the processes of the run itself."""
    launched = bool(variables.get("RANK")) or any(
        variables.get(name, "1") not in ("", "1") for name in ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    )
    return engine.devices > 1 and engine.nodes == 1 and not launched


def refuse_too_many(engine: EngineConfig) -> None:
    """Raises ValueError for far more processes than there are CPU cores."""
    if engine.devices > cores() * PROCESSES_A_CORE:
        raise ValueError(
            f"run.engine.devices is {engine.devices:,}, a process each, but there are "
            f"{number_of(cores(), 'CPU core')} for this run; lower it to {cores():,} or less"
        )


def start_processes(count: int, arguments: Sequence[str], *, command: Sequence[str] = COMMAND) -> int:
    """Runs `arlow fit` with these arguments in `count` processes and returns the exit status of the run.

    Signals are forwarded to all of them. When one fails, the others are ended, and the run has its status.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    shared[STARTED_BY] = str(os.getpid())
    processes: list[subprocess.Popen] = []

    def forward(number: int, frame: object) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
    try:
        for rank in range(count):
            environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path}
            # Sessions of their own, so that Ctrl-C in the terminal reaches them once, through `forward`.
            processes.append(subprocess.Popen([*command, *arguments], env=environment, start_new_session=True))
        return _status_of(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _status_of(processes: Sequence[subprocess.Popen]) -> int:
    """Waits until all have ended, or `GRACE_SECONDS` after one has failed, and returns the exit status of the run."""
    failed_at = None
    reported: set[int] = set()
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code is not None and code < 0 and rank not in reported:
                reported.add(rank)
                name = signal.Signals(-code).name
                print_line(f"arlow: the process of rank {rank} died ({name}), so the run ends", file=sys.stderr)
        failures = [code for code in codes if code]
        if None not in codes or (failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS):
            reasons = [code for code in failures if code != LOST] or failures
            return next((128 - code if code < 0 else code for code in reasons), 0)
        if failures and failed_at is None:
            failed_at = time.monotonic()
        time.sleep(0.05)


def end_with_starter() -> None:
    """Lets a process that `arlow fit` started end with it, even if that is killed."""
    starter = os.environ.get(STARTED_BY)
    if starter is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(starter):
        raise SystemExit(LOST)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
