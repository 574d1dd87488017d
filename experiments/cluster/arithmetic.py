"""Table of what a run of 2.7 billion parameters takes on 8 and on 512 GPUs: arithmetic, nothing is measured.

python -m experiments.cluster.arithmetic
"""

PARAMETERS = 2.7e9
PEAK = 989e12
"""Operations a second of an H100 in bf16, dense, by its data sheet."""
STEP_BYTES = 4 + 4 + 8
"""Bytes of a parameter: float32 weight and gradient, two moments of AdamW."""
SAVED_BYTES = 4 + 8
"""Bytes of a parameter in a checkpoint."""
DISK = 2e9
"""Bytes a second that all processes together can write: one slow shared file system."""
TOKENS_OF_AN_IMAGE = 256
"""Text tokens of a run for each of its images."""
IMAGE_BYTES = 50e3
RUN_TOKENS = 1e11
RUNS = {"8 GPUs": (8, 8, 0.45), "512 GPUs, 64 replicas": (512, 8, 0.40)}
"""GPUs, those that share one copy of the model, and the share of the peak that is assumed (MFU)."""


def table() -> str:
    columns = [column(*run) for run in RUNS.values()]
    lines = ["| | " + " | ".join(RUNS) + " |", "| --- |" + " --- |" * len(RUNS)]
    return "\n".join(lines + [f"| {name} | " + " | ".join(c[name] for c in columns) + " |" for name in columns[0]])


def column(gpus: int, shards: int, mfu: float) -> dict[str, str]:
    tokens = gpus * mfu * PEAK / (6 * PARAMETERS)  # two operations a weight forward, four back; attention not counted
    images = tokens / TOKENS_OF_AN_IMAGE
    return {
        "assumed share of the peak (MFU)": f"{mfu:.0%}",
        "memory of a GPU for weights, gradients, optimizer": f"{PARAMETERS * STEP_BYTES / shards / 1e9:.1f} GB",
        "tokens/s": f"{tokens:,.0f}",
        "images/s, one for each 256 tokens": f"{images:,.0f}",
        "data read, images of 50 kB": f"{images * IMAGE_BYTES / 1e6:,.0f} MB/s",
        "checkpoint": f"{PARAMETERS * SAVED_BYTES / 1e9:.1f} GB",
        "time to write it at 2 GB/s, beside training": f"{PARAMETERS * SAVED_BYTES / DISK:.0f} s",
        "time for 100 billion tokens": f"{RUN_TOKENS / tokens / 3600:,.1f} hours",
    }


if __name__ == "__main__":
    print(table())
