"""Three small decoders by the dial of sizes, a line through their losses over compute, and the next one beside it.

Run it with `python -m experiments.scaling.sweep` where `make demo` has fetched its text, or name two files of text.
Every run is a recipe that this writes and `arlow fit` runs; a sweep that was stopped continues where it was.
"""

import argparse
import csv
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arlow_vl.cli import main as arlow
from arlow_vl.data.text import LineTally, read_jsonl
from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer
from arlow_vl.training.sizes import fields_of_shape, lr_of_width
from experiments.benchmarks.measure import machine, table
from vision.whole_files import write_whole

SHAPES = ((64, 2), (64, 4), (128, 2), (128, 4))
"""hidden_size and layers; the last is predicted from the others."""
VOCAB, TOKENIZER_DOCUMENTS = 1024, 2000
ROW, ROWS = 256, 16
TOKENS_PER_PARAMETER = 2
WARMUP = 0.1
"""Share of the steps."""


@dataclass(frozen=True)
class Run:
    hidden_size: int
    layers: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.hidden_size}x{self.layers}"

    @property
    def parameters(self) -> int:
        """Weights of the matrices that text passes through; the embedding counts once, as the head."""
        fields = fields_of_shape(self.hidden_size, self.layers)
        heads, keys = (n * fields["head_dim"] for n in (fields["num_attention_heads"], fields["num_key_value_heads"]))
        layer = self.hidden_size * (2 * heads + 2 * keys + 3 * fields["intermediate_size"])
        return self.layers * layer + VOCAB * self.hidden_size

    @property
    def compute(self) -> float:
        """Operations of training: 6 a parameter and token, and those of causal attention."""
        return self.steps * ROWS * ROW * (6 * self.parameters + 6 * self.layers * self.hidden_size * ROW)


def planned(share: float = 1.0) -> list[Run]:
    """Each with as many tokens a parameter, or a share of them."""
    runs = []
    for hidden_size, layers in SHAPES:
        tokens = share * TOKENS_PER_PARAMETER * Run(hidden_size, layers, 0).parameters
        runs.append(Run(hidden_size, layers, max(4, round(tokens / (ROWS * ROW)))))
    return runs


def write_recipe(run: Run, folder: Path, train: Path, validation: Path) -> Path:
    values: dict[str, Any] = {
        "stage": "text",
        "run_dir": str(folder / run.name),
        "tokenizer": str(folder / "tokenizer"),
        "model": fields_of_shape(run.hidden_size, run.layers) | {"max_position_embeddings": ROW},
        "train_text": str(train),
        "validation_text": str(validation),
        "packed_folder": str(folder / "packed"),
        "row_length": ROW,
        "batch_size": ROWS,
        "max_tokens": max(one.steps for one in planned()) * ROWS * ROW,
        "policy": {"decoder": "train", "cross_attention": "frozen"},
        "run": {"max_steps": run.steps, "validate_every": run.steps, "checkpoint_every": 200, "threads": 1},
        "optim": {"warmup_steps": round(WARMUP * run.steps)},  # its rate follows from the width
    }
    values["run"] |= {"validation_samples": 128}
    path = folder / f"{run.name}.yaml"
    write_whole(path, yaml.safe_dump(values, sort_keys=False))
    return path


def validation_loss(run_dir: Path) -> float:
    """The last of a finished run."""
    with open(run_dir / "metrics.csv") as file:
        losses = [row["validation_loss"] for row in csv.DictReader(file) if row["validation_loss"]]
    return float(losses[-1])


def fit_line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of log loss over log compute, by least squares."""
    xs, ys = ([math.log(point[side]) for point in points] for side in (0, 1))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
    return y - slope * x, slope


def on_line(line: tuple[float, float], compute: float) -> float:
    return math.exp(line[0] + line[1] * math.log(compute))


def report(runs: list[Run], losses: list[float]) -> tuple[str, dict[str, Any]]:
    """The table, and figures: the line goes through all runs but the last, which it predicts."""
    points = [(run.compute, loss) for run, loss in zip(runs, losses, strict=True)]
    line = fit_line(points[:-1])
    rows = []
    for run, (compute, loss) in zip(runs, points, strict=True):
        expected = on_line(line, compute)
        kind = "predicted" if run is runs[-1] else "fitted"
        off = f"{100 * (loss / expected - 1):+.2f}%"
        rows.append(
            [run.name, f"{run.parameters / 1e6:.2f}", f"{run.steps * ROWS * ROW / 1e6:.2f}", f"{compute / 1e12:.2f}",
             f"{lr_of_width(run.hidden_size):g}", f"{loss:.4f}", f"{expected:.4f} ({kind})", off]
        )  # fmt: skip
    header = ["width x layers", "M parameters", "M tokens", "TFLOP", "rate", "validation loss", "the line", "off it by"]
    found = machine()
    text = (
        f"# Loss over compute\n\n{found['processor']}, one thread; torch {found['versions']['torch']}. "  # pyrefly: ignore
        f"Vocabulary {VOCAB:,}.\n\n{table(header, rows)}\n\n"
        f"loss = {math.exp(line[0]):.3f} x FLOP ^ {line[1]:.4f}, fitted to all runs but the last."
    )
    figures = {run.name: {"compute": c, "loss": loss} for run, (c, loss) in zip(runs, points, strict=True)}
    return text, {"machine": found, "line": line, "runs": figures}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=Path("data/text/train.jsonl"), help="text to learn, JSON lines")
    parser.add_argument("--validation", type=Path, default=Path("data/text/validation.jsonl"), help="text held out")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="folder of the runs and of result.md")
    parser.add_argument("--share", type=float, default=1.0, help="of the tokens, for a first look")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.out
    if not (folder / "tokenizer").is_dir():
        documents = itertools.islice(read_jsonl(arguments.train, LineTally()), TOKENIZER_DOCUMENTS)
        train_tokenizer(documents, vocab_size=VOCAB).save_pretrained(folder / "tokenizer")
    runs = planned(arguments.share)
    for run in runs:
        recipe = write_recipe(run, folder, arguments.train, arguments.validation)
        if arrived := arlow(["fit", "--config", str(recipe)]):
            raise SystemExit(arrived)
    text, figures = report(runs, [validation_loss(folder / run.name) for run in runs])
    print(text)
    write_whole(folder / "result.md", text + "\n")
    write_whole(folder / "result.json", json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
