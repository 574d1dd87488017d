"""Engine of a run: its devices, its Lightning strategy, and checks of both."""

import os
import sys
from typing import Any

import torch
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from arlow_vl.training.checkpoint_names import steps_done
from arlow_vl.training.compiling import refuse_no_compiler
from arlow_vl.training.launch import ProcessRank, refuse_too_many
from arlow_vl.training.policy import read_policy
from arlow_vl.training.recipe import Recipe
from arlow_vl.training.settings import EngineConfig, check
from arlow_vl.training.sharding import ShardedStrategy


def device_type_of(engine: EngineConfig) -> str:
    """Returns `cpu` or `cuda`."""
    if engine.accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return engine.accelerator


def refuse_wrong_engine(recipe: Recipe) -> None:
    """Raises ValueError if devices are missing, or do not suit the precision, optimizer, policy or batch count, or if
    this system has no workers."""
    run, engine = recipe.run, recipe.run.engine
    check(
        run.workers == 0 or sys.platform == "linux",
        f"run.workers is {run.workers}, but processes that read ahead are forked, which is safe on Linux alone; "
        "set it to 0",
    )
    device_type = device_type_of(engine)
    if device_type == "cuda":
        there = torch.cuda.device_count()
        check(there > 0, "run.engine.accelerator is cuda, but torch sees no GPU; set it to cpu or auto")
        check(
            engine.devices <= there,
            f"run.engine.devices is {engine.devices}, but this machine has {there}; lower it",
        )
    refuse_too_many(engine)
    if run.compile:
        refuse_no_compiler(device_type)
    check(
        run.precision != "16-mixed" or device_type == "cuda",
        "run.precision 16-mixed needs a GPU; on a CPU set it to bf16-mixed or 32-true",
    )
    is_sharded = engine.strategy == "fsdp"
    check(
        not (is_sharded and run.precision == "16-mixed"),
        "run.precision 16-mixed goes with one device or strategy ddp; with fsdp set it to bf16-mixed",
    )
    check(
        not (is_sharded and recipe.optim.optimizer == "muon"),
        "optim.optimizer muon needs whole matrices: set run.engine.strategy to ddp, or the optimizer to adamw",
    )
    adapted = [name for name, part in read_policy(recipe.policy).items() if part.treatment == "lora"]
    check(
        not (adapted and engine.tensor_parallel > 1),
        f"policy.{' and policy.'.join(adapted)} has adapters, which run.engine.tensor_parallel cannot share among "
        "devices; set it to 1",
    )
    batches, ranks = run.accumulate_grad_batches, engine.data_ranks
    if batches % ranks:
        fits = -(-batches // ranks) * ranks
        advice = f"set it to {fits}, and the batches {fits / batches:.3g} times smaller to keep the step's size"
        if steps_done(recipe.run_dir):
            fitting = ", ".join(str(count) for count in range(1, batches + 1) if batches % count == 0)
            advice = f"a begun run keeps it, so this one resumes with a number that divides it ({fitting})"
        raise ValueError(
            f"run.accumulate_grad_batches is {batches}, the batches of a step over all devices, which {ranks} data "
            f"ranks cannot share evenly; {advice}"
        )


class LaunchedEnvironment(ClusterEnvironment):
    """Ranks of one of several processes, as `find_place` has read and checked them.

    Lightning's own environments read the launcher's variables again, by other rules: that for SLURM refuses a step that
    is smaller than its job, and requeues jobs in the middle of a step.
    """

    creates_processes_externally = True

    def __init__(self, place: ProcessRank, engine: EngineConfig) -> None:
        self.place, self.engine = place, engine

    @staticmethod
    def detect() -> bool:
        return False

    @property
    def main_address(self) -> str:
        return os.environ["MASTER_ADDR"]  # set by `joined`

    @property
    def main_port(self) -> int:
        return int(os.environ["MASTER_PORT"])

    def world_size(self) -> int:
        return self.place.world_size

    def set_world_size(self, size: int) -> None:
        """Does nothing: the number is the launcher's."""

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        """Does nothing: the rank is the launcher's."""

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.rank // self.engine.devices


def environment_of(place: ProcessRank, engine: EngineConfig) -> ClusterEnvironment:
    """Returns the cluster environment of this process. Lightning would choose one by environment variables."""
    return LaunchedEnvironment(place, engine) if place.world_size > 1 else LightningEnvironment()


class HalfPrecisionOfBatches(HalfPrecision):
    """Half precision for the batch's own tensors; Lightning's also converts nested ones, and fails at the layout."""

    def convert_input(self, data: dict[str, Any]) -> dict[str, Any]:
        """Returns the batch with its floating-point tensors in half precision."""
        kind = self._desired_input_dtype
        return {name: x.to(kind) if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in data.items()}


def engine_of(recipe: Recipe) -> dict[str, Any]:
    """Returns the arguments of Lightning's Trainer that concern devices, precision and accumulation."""
    engine, precision = recipe.run.engine, recipe.run.precision
    strategy: Any = "auto"
    plugins: list[Any] = []
    if engine.strategy == "fsdp":
        strategy, precision = ShardedStrategy(engine), "32-true"  # its units have their own dtypes
    elif engine.world_size > 1 or engine.strategy == "ddp":
        strategy = DDPStrategy(gradient_as_bucket_view=True)
    if precision == "bf16-true":
        plugins, precision = [HalfPrecisionOfBatches(precision)], None
    return {
        "accelerator": device_type_of(engine),
        "devices": engine.devices,
        "num_nodes": engine.nodes,
        "strategy": strategy,
        "precision": precision,
        "plugins": plugins,
        "accumulate_grad_batches": recipe.run.accumulate_grad_batches // engine.data_ranks,
    }
