"""Speed of a run: time spent waiting for data, the peak of the device's matrix products, and memory."""

import resource
import statistics
import sys
import time

import torch
from lightning.pytorch.profilers import Profiler

FETCH = "[_TrainingEpochLoop].train_dataloader_next"
"""Name of Lightning's action that waits for the next training batch."""
SIZES = {"cuda": 8192, "cpu": 512}
"""Rows of the square matrices whose product is timed, by device type."""
TRIES = 7


class WaitingForData(Profiler):
    """Profiler of Lightning that counts the seconds in which training waits for its loader."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.since = 0.0

    def start(self, action_name: str) -> None:
        if action_name == FETCH:
            self.since = time.monotonic()

    def stop(self, action_name: str) -> None:
        if action_name == FETCH:
            self.seconds += time.monotonic() - self.since

    def take(self) -> float:
        """Returns the seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the operations per second of a square matrix product, the median of several; leaves global RNGs alone."""
    size = SIZES.get(device.type, SIZES["cpu"])
    dice = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=dice, device=device).to(dtype) for _ in range(2))
    seconds = []
    with torch.no_grad():
        for _ in range(TRIES + 2):  # the first ones choose a kernel and warm up
            _wait_for(device)
            began = time.perf_counter()
            a @ b
            _wait_for(device)
            seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[2:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_gib(device: torch.device) -> float:
    """Returns the peak memory so far: of tensors on the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
