"""How fast a run is, beside what its device could do: waiting for data, operations a second, memory."""

import resource
import statistics
import sys
import time

import torch
from lightning.pytorch.profilers import Profiler

FETCH = "[_TrainingEpochLoop].train_dataloader_next"
"""What Lightning calls the time in which it waits for the next training batch."""
SIZES = {"cuda": 8192, "cpu": 512}
"""Rows of the square matrices whose product is measured."""
TRIES = 7


class WaitingForData(Profiler):
    """Seconds in which training waited for its loader, in the place of Lightning's profiler, which is told of them."""

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
        """Those since it was asked last."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of square matrices, the median of some; draws from no generator but its own."""
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
    """The most that was taken so far: of the GPU by tensors, else of the machine by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
