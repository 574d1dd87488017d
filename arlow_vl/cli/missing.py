"""Things that this machine lacks, their uses, and what to do about it."""

import os
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import NamedTuple

from arlow_vl.cores import cores
from arlow_vl.versions import ABSENT, version_of

USES = {
    "demo": "`arlow data fetch` and `make demo`",
    "convert": "`arlow import` and `arlow export` of GGUF files, and tokenizer.model",
    "flash": "FlashAttention's kernels in fp16 and bf16 on CUDA (PyTorch's run else)",
    "peft": "LoRA, of a stage or of transformers",
    "quant": "weights in 8 and 4 bits",
    "tensorboard": "run.watch.loggers tensorboard",
    "wandb": "run.watch.loggers wandb",
    "mlflow": "run.watch.loggers mlflow",
    "trackio": "run.watch.loggers trackio",
    "serve": "`arlow serve` and `arlow demo`",
    "trainer": "the Hugging Face Trainer",
    "trl": "trl's SFTTrainer",
    "languages": "languages in `arlow data stats`",
    "docs": "`make docs`",
    "lm-eval": "lm-eval with `--model arlow_vl`",
    "lmms-eval": "lmms-eval with `--model arlow_vl`",
}
"""The use of each of the package's extras."""
OF_EXTRA = re.compile(r"""(?P<name>[\w.-]+(\[\w+\])?).*;.*\bextra == ["'](?P<extra>[\w-]+)["']""")
"""Matches a requirement such as `onnx>=1.18; extra == "demo"`."""
CUDA_ONLY = {"flash"}
DEMO_BYTES = 2.4e9  # experiments/first_light/run.py: data and runs


class Missing(NamedTuple):
    """One thing that is missing, shown as `onnx, for ``make demo``: pip install 'arlow-vl[demo]'`."""

    what: str
    use: str
    advice: str


def missing_things() -> list[Missing]:
    return [*missing_packages(), *unused_devices(), *odd_threads(), *little_disk()]


def missing_packages() -> Iterator[Missing]:
    """Yields the extras of the package that are not, or not completely, installed."""
    import torch

    for extra, use in USES.items():
        lacking = [name for name in packages_of(extra) if not is_installed(name)]
        if lacking and (extra not in CUDA_ONLY or torch.cuda.is_available()):
            yield Missing(" and ".join(lacking), use, f"pip install 'arlow-vl[{extra}]'")


def packages_of(extra: str) -> list[str]:
    """Returns the packages of an extra; empty if the installed version lacks it, or none is installed."""
    try:
        required = requires("arlow-vl") or []
    except PackageNotFoundError:
        required = []
    found = filter(None, map(OF_EXTRA.match, required))
    return [one["name"].partition("[")[0] for one in found if one["extra"] == extra]


def is_installed(name: str) -> bool:
    return version_of(name) != ABSENT


def unused_devices() -> Iterator[Missing]:
    import torch

    if Path("/proc/driver/nvidia/version").exists() and not torch.cuda.is_available():
        built = "is built without CUDA" if torch.version.cuda is None else f"is built for CUDA {torch.version.cuda}"
        yield Missing(
            "CUDA", "the GPU that is here", f"torch {built} and cannot use it; install one for the driver's version"
        )


def odd_threads() -> Iterator[Missing]:
    import torch

    used, there = torch.get_num_threads(), cores()
    if used < there and "OMP_NUM_THREADS" in os.environ:
        yield Missing("threads", f"speed, as {used} of {there} cores are used", "unset OMP_NUM_THREADS")
    elif used > there:
        advice = f"set OMP_NUM_THREADS={there}"
        yield Missing("cores", f"{used} threads, which wait for each other on {there}", advice)


def little_disk() -> Iterator[Missing]:
    free = free_bytes()
    if free < DEMO_BYTES:
        yield Missing(
            f"disk space, {free / 1e9:.1f} GB are free here",
            f"`make demo`, which takes {DEMO_BYTES / 1e9:.1f} GB beside the environment",
            "free some, or run it on another disk",
        )


def free_bytes() -> int:
    return shutil.disk_usage(Path.cwd()).free
