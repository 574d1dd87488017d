"""`arlow doctor`: what this machine has, and which attention kernel the gate picks on it."""

import argparse
import os
import platform
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from arlow_vl.cli.parser import Parser

DTYPES = ("float32", "bfloat16", "float16", "float64")
HEAD_SIZES = (64, 96, 128, 192, 256)


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "doctor",
        "show versions, hardware and the attention kernels of this machine",
        "arlow doctor",
        "arlow doctor --json",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import json

    found = {"versions": versions(), "machine": machine(), "attention": attention_table()}
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in (found["versions"] | found["machine"]).items():
        print(f"{name:14}{value}")
    print(f"\n{'device':8}{'dtype':10}{'head size':20}{'kernel':8}reason")
    same = groupby(found["attention"], key=lambda row: [row[key] for key in ("device", "dtype", "kernel", "reason")])
    for (device, dtype, kernel, reason), rows in same:
        sizes = " ".join(str(row["head_size"]) for row in rows)
        print(f"{device:8}{dtype:10}{sizes:20}{kernel:8}{reason}")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    import torch

    from arlow_vl.models.arlow.attention import flash_attn_state

    found = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with the CUDA it was built for
    found |= {name: version(name) for name in ("transformers", "timm")}
    flash_attn = flash_attn_state()
    if flash_attn == "present":
        flash_attn = getattr(sys.modules["flash_attn"], "__version__", flash_attn)
    return found | {"flash-attn": flash_attn}


def machine() -> dict[str, str]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "CPU": f"{cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "GPU": ", ".join(gpus) or "none",
        "oneDNN": "available" if torch.backends.mkldnn.is_available() else "absent",
    }


def cpu_name() -> str:
    """As Linux calls it; elsewhere what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def attention_table() -> list[dict[str, Any]]:
    """The gate's answer for each case; it is the function that every attention asks."""
    import torch

    from arlow_vl.models.arlow.attention import kernel_for

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    table = []
    for device in devices:
        for dtype in DTYPES:
            for head_size in HEAD_SIZES:
                choice = kernel_for(getattr(torch, dtype), device, head_size)
                case = {"device": device, "dtype": dtype, "head_size": head_size}
                table.append(case | {"kernel": choice.kernel, "reason": choice.reason})
    return table
