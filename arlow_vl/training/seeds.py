"""Random numbers of a batch: a function of the run's seed and the batch's number."""

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class SeedEachStep(Callback):
    """A batch's random numbers depend on the seed and its number, not on what ran before: Lightning saves no RNG."""

    def __init__(self, seed: int, *, rank: int = 0, ranks: int = 1) -> None:
        self.seed = seed
        self.rank, self.ranks = rank, ranks
        """Of those that read different batches: batches are numbered over all of them."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_batch(self.seed, batch_idx * self.ranks + self.rank, device_type=pl_module.device.type)


def seed_batch(seed: int, number: int, *, device_type: str) -> None:
    """Seeds Python, NumPy and torch: its CPU generator, and those of the device that the run trains on.

    `torch.manual_seed` sets the same numbers, but asks every kind of device that is not there, and notes a traceback
    for each: a third of a millisecond, in which a tiny model has done a tenth of its step.
    """
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    number_for_torch = int.from_bytes(digest[:8], "little") >> 1
    if device_type == "cpu":
        torch.default_generator.manual_seed(number_for_torch)
    elif device_type == "cuda":
        torch.default_generator.manual_seed(number_for_torch)
        torch.cuda.manual_seed_all(number_for_torch)
    else:
        torch.manual_seed(number_for_torch)
    np.random.seed(int.from_bytes(digest[8:12], "little"))
    random.seed(digest)
