"""Runs of `test_compile.py`, in processes of their own: the shape checks of the tests do not go through torch's
compiler."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback

from arlow_vl.training import build
from arlow_vl.training.launch import start_processes
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.training.rank_runs import with_ports
from tests.training.stops import Stop

COMMAND = (sys.executable, "-m", "tests.training.compiled_runs")


class Graphs(Callback):
    """How many graphs there are after each batch and each validation."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_end(self, *_) -> None:
        self.counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def on_validation_end(self, *_) -> None:
        self.on_train_batch_end()


def run_compiled(folder: Path, *runs: dict, backend: str, ranks: int = 1) -> list[dict]:
    """Carries out runs, each {"options": the recipe's, "stop": see `Stop`}, and tells of each its graphs and breaks."""
    path = folder / "runs.json"
    path.write_text(with_ports(runs))
    assert start_processes(ranks, [str(path), backend], command=COMMAND) == 0
    return json.loads(path.with_suffix(".told").read_text())


def main(path: Path, backend: str) -> None:
    build.compile_blocks = partial(build.compile_blocks, backend=backend)
    torch.set_num_threads(1)
    told = []
    for run in json.loads(path.read_text()):
        os.environ["MASTER_PORT"] = run["port"]
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        graphs = Graphs()
        stops: list[Callback] = [Stop(**run["stop"])] if run.get("stop") else []
        try:
            fit(parse_recipe(run["options"]), callbacks=[graphs, *stops])
        except SystemExit:
            if not stops:
                raise
        told.append({"graphs": graphs.counts, "breaks": dict(torch._dynamo.utils.counters["graph_break"])})
    if os.environ["RANK"] == "0":
        path.with_suffix(".told").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
