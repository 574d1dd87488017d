"""`arlow doctor`: shows what this machine has and lacks, and the kernels and precision that Arlow uses on it."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from arlow_vl.cli.missing import free_bytes, missing_things
from arlow_vl.cli.parser import Parser
from arlow_vl.cores import cores
from arlow_vl.versions import version_of

DTYPES = ("float32", "bfloat16", "float16", "float64")
HEAD_SIZES = (64, 96, 128, 192, 256)
PAYS_IN_BF16 = {
    "amx_bf16": "AMX multiplies bf16 at 411 GFLOP/s a core where float32 has 116, measured on a Xeon",
    "avx512_bf16": "AVX512-BF16: training ran 1.5 to 1.7 times as fast as in float32, measured on an EPYC",
}
"""Processor flags with which training in bf16-mixed is faster than in float32, and the measurement."""


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "doctor",
        "show this machine's versions, hardware, kernels and advised precision, and what is missing for what",
        "arlow doctor",
        "arlow doctor --json",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import json

    found = {
        "versions": versions(),
        "machine": machine(),
        "products": product_table(),
        "precision": dict(zip(("advised", "reason"), advise_precision(cpu_field("flags").split()), strict=True)),
        "attention": attention_table(),
        "missing": [thing._asdict() for thing in missing_things()],
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in (found["versions"] | found["machine"]).items():
        print(f"{name:14}{value}")
    print(f"\n{'product':10}{'kernel':8}reason, on this CPU")
    for row in found["products"]:
        print(f"{row['dtype']:10}{row['kernel']:8}{row['reason']}")
    print(f"\nprecision on this CPU: {found['precision']['advised']} ({found['precision']['reason']})")
    print(f"\n{'device':8}{'dtype':10}{'head size':20}{'kernel':8}reason")
    same = groupby(found["attention"], key=lambda row: [row[key] for key in ("device", "dtype", "kernel", "reason")])
    for (device, dtype, kernel, reason), rows in same:
        sizes = " ".join(str(row["head_size"]) for row in rows)
        print(f"{device:8}{dtype:10}{sizes:20}{kernel:8}{reason}")
    print("\nmissing" if found["missing"] else "\nnothing is missing")
    for thing in found["missing"]:
        print(f"- {thing['what']}, for {thing['use']}: {thing['advice']}")


def versions() -> dict[str, str]:
    import torch

    from arlow_vl.models.arlow.attention import flash_attn_state

    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }  # includes the CUDA version it was built for
    found |= {name: version_of(name) for name in ("transformers", "timm")}
    flash_attn = flash_attn_state()
    if flash_attn == "present":
        flash_attn = getattr(sys.modules["flash_attn"], "__version__", flash_attn)
    return found | {"flash-attn": flash_attn}


def machine() -> dict[str, str]:
    import torch

    from arlow_vl.models.arlow.linear import cpu_vendor

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    name = cpu_field("model name") or platform.processor() or platform.machine()
    described = [name, cpu_vendor(), f"{os.cpu_count()} cores", torch.backends.cpu.get_cpu_capability()]
    return {
        "CPU": ", ".join(filter(None, described)),
        "GPU": ", ".join(gpus) or "none",
        "oneDNN": "available" if torch.backends.mkldnn.is_available() else "absent",
        "threads": f"{torch.get_num_threads()} of {cores()} cores",
        "disk": f"{free_bytes() / 1e9:.1f} GB free in {Path.cwd()}",
        "OpenMP waits": os.environ.get("OMP_WAIT_POLICY", "by its own default"),
    }


def cpu_field(name: str) -> str:
    """Returns a field of Linux's description of the first processor, "" elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def advise_precision(flags: Sequence[str]) -> tuple[str, str]:
    """Returns the `precision` for a recipe that trains on a CPU with these flags, and the reason."""
    for flag, reason in PAYS_IN_BF16.items():
        if flag in flags:
            return "bf16-mixed", reason
    return (
        "32-true",
        "neither AMX nor AVX512-BF16: bf16 training ran at 0.11 to 0.14 of float32's speed where measured",
    )


def product_table() -> list[dict[str, str]]:
    """Returns the kernel of a linear layer's product on this CPU, by the function that every layer calls."""
    import torch

    from arlow_vl.models.arlow.linear import product_for

    choices = {dtype: product_for(getattr(torch, dtype), "cpu") for dtype in DTYPES}
    return [{"device": "cpu", "dtype": d, "kernel": c.kernel, "reason": c.reason} for d, c in choices.items()]


def attention_table() -> list[dict[str, Any]]:
    """Returns the attention kernel of each case, by the function that every attention calls."""
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
