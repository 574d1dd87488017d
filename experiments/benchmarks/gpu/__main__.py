"""A quarter of an hour of one H100: `python -m experiments.benchmarks.gpu --out runs/gpu`.

Every section has a limit, runs in a process of its own and writes its result file from its first figure on; one that
fails writes its error, and the next goes on. `--only parity text_training` runs those, `--toy` any of them on a CPU.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking whether there is a GPU must not touch it here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from experiments.benchmarks.gpu.decoding import decoding
from experiments.benchmarks.gpu.images import cached_features, image_text, images_a_row
from experiments.benchmarks.gpu.loss import wide_loss
from experiments.benchmarks.gpu.packed import packed_rows
from experiments.benchmarks.gpu.parity import parity
from experiments.benchmarks.gpu.sections import Section, run_sections
from experiments.benchmarks.gpu.text import text_training

SECTIONS = (  # the most valuable first; 13 minutes together
    Section("parity", parity, 45),
    Section("text_training", text_training, 240),
    Section("image_text", image_text, 130),
    Section("decoding", decoding, 190),
    Section("images_a_row", images_a_row, 60),
    Section("packed_rows", packed_rows, 40),
    Section("cached_features", cached_features, 35),
    Section("wide_loss", wide_loss, 40),
)


def build_parser() -> argparse.ArgumentParser:
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(
        "python -m experiments.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these sections")
    parser.add_argument("--minutes", type=float, default=13.5, help="of all sections together")
    parser.add_argument("--toy", action="store_true", help="sizes of a test on the CPU: figures say nothing")
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(argv)
    sections = [section for section in SECTIONS if section.name in arguments.only]
    command = f"python -m experiments.benchmarks.gpu {shlex.join(argv)}"
    failed = run_sections(sections, arguments.out, seconds=60 * arguments.minutes, toy=arguments.toy, command=command)
    summary = (arguments.out / "summary.md").read_text()
    print(summary[summary.index("# Fell short") :])
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
