"""Random seeds of each batch, a function of the run's seed and the batch's number."""

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class SeedEachStep(Callback):
    """Seeds all generators before each batch, so that a resumed run needs no saved RNG state, which Lightning lacks."""

    def __init__(self, seed: int, *, rank: int = 0, ranks: int = 1) -> None:
        self.seed = seed
        self.rank, self.ranks = rank, ranks
        """Rank and number of the processes that read different batches; batches are numbered across all of them."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_batch(self.seed, batch_idx * self.ranks + self.rank, device_type=pl_module.device.type)


def seed_batch(seed: int, number: int, *, device_type: str) -> None:
    """Seeds Python, NumPy and torch: its CPU generator, and those of the device that the run trains on.

    `torch.manual_seed` does the same, but also queries every absent kind of device and records a traceback for each.
    That takes a third of a millisecond, a tenth of a tiny model's step.
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
