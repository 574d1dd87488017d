"""Savings by packing and the segment table: `python -m experiments.benchmarks.attention`.

Packed against padded training steps; cross-attention over many images against a dense mask; on a GPU the varlen
kernel against SDPA. Some five minutes on two quiet cores.
"""

import argparse

import torch

from experiments.benchmarks.cross_attention import PATCHES, TEXT, measure_cross_attention
from experiments.benchmarks.measure import report
from experiments.benchmarks.packing import DOCUMENTS, MEDIAN, SPREAD, measure_packing
from experiments.benchmarks.varlen import measure_varlen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    packing, packing_table = measure_packing(rounds)
    print(packing_table, flush=True)
    cross, cross_table = measure_cross_attention(rounds)
    varlen, varlen_table = measure_varlen(rounds)
    sections = [
        "# Attention",
        "## Packed against padded",
        f"A training step over {DOCUMENTS} documents of log-normal length (median {MEDIAN}, sigma {SPREAD}), four "
        "batches, 25 M parameters, float32, two threads.",
        packing_table,
        "## Cross-attention over many images",
        f"Forward and backward of one layer over one row of {TEXT:,} tokens with {PATCHES:,} patches an image, and "
        "what it builds of the batch.",
        cross_table,
        "## Varlen on a GPU",
        varlen_table,
    ]
    text = "\n\n".join(sections)
    report("attention", text, {"packing": packing, "cross_attention": cross, "varlen": varlen})


if __name__ == "__main__":
    main()
