"""One process of the runs of `test_ranks*.py`: several runs one after another, as importing torch takes longer."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import Callback

from arlow_vl.training.launch import start_processes
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.training.stops import KillInSave, Stop

COMMAND = (sys.executable, "-m", "tests.training.rank_runs")


def run_on_ranks(count: int, folder: Path, *runs: dict) -> int:
    """Carries out runs, each {"options": the recipe's, "stop": see `Stop`, "kill": see `KillInSave`}, and returns the
    exit status."""
    path = folder / f"runs-{count}.json"
    path.write_text(with_ports(runs))
    return start_processes(count, [str(path)], command=COMMAND)


def with_ports(runs: Iterable[dict]) -> str:
    """JSON of the runs, with a free port for each: behind a run its port stays taken for a while, and the number after
    it may be that of any client on this machine."""
    with contextlib.ExitStack() as stack:
        held = [(run, stack.enter_context(socket.create_server(("127.0.0.1", 0)))) for run in runs]
        return json.dumps([run | {"port": str(listener.getsockname()[1])} for run, listener in held])


def main(path: Path) -> None:
    torch.set_num_threads(1)
    for run in json.loads(path.read_text()):
        os.environ["MASTER_PORT"] = run["port"]
        callbacks: list[Callback] = [Stop(**run["stop"])] if run.get("stop") else []
        callbacks += [KillInSave(**run["kill"])] if run.get("kill") else []
        try:
            fit(parse_recipe(run["options"]), callbacks=callbacks)
        except SystemExit as stop:
            if stop.code != run.get("status"):
                raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
