"""Experiments that people run, a folder each, and the benchmarks."""

import logging

# Before anything loads torch: where torchao is installed, transformers loads it, and torch warns of two enums in it.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
