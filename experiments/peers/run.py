"""Compares Arlow with three other ways to show images to a text model, at the same features, data and budget.

    make demo                                   # once: text model, drawings, encoder weights
    python -m experiments.peers.run

Every run is kept in the folder of the results, and a stopped experiment resumes after the last complete one.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from arlow_vl.data.scenes.drawings import read_drawings
from arlow_vl.evaluation.held_out_text import Rows, read_rows
from arlow_vl.models.folders import load_tokenizer
from arlow_vl.training.build import data_config_beside
from arlow_vl.training.optimizers import is_gate
from experiments.benchmarks.measure import machine
from experiments.peers.data import Data, make_data
from experiments.peers.models import BUILDERS, VARIANTS, Peer, trained
from experiments.peers.scoring import controls_of, scores_of, text_of
from experiments.peers.table import format_table
from experiments.peers.training import Plan, fit, search, speeds, validation_loss
from vision.encoder import VisionEncoder
from vision.weights import load_encoder_weights
from vision.whole_files import write_whole

SIZES = {"train": 3000, "validation": 60, "test-new": 200, "test-pairs": 200}
ENCODER = "tf_efficientnet_lite0"
IMAGES_A_ROW = (1, 4)
ROUNDS = 7


@dataclass(frozen=True)
class Study:
    """Inputs that all runs share, and the folder of their figures."""

    text: Path
    """The text model of all models but the one from scratch."""
    data: Data
    rows: Rows
    """Rows of held-out text."""
    plan: Plan
    runs: Path
    """Folder with a file for each complete run."""

    def build(self, name: str, seed: int) -> Peer:
        torch.manual_seed(seed)
        return (BUILDERS | VARIANTS)[name](self.text, self.data.width, self.data.side).eval()

    def search(self, name: str, rate: float) -> float:
        """Returns the validation loss of a short run."""

        def run() -> dict[str, Any]:
            peer = self.build(name, 0)
            training = fit(peer, self.data, self.plan, lr=rate, steps=self.plan.search_steps, seed=0)
            return {"loss": validation_loss(peer, self.data), "training": training}

        return self.kept(f"{name}, search, {rate:g}", run)["loss"]

    def score(self, name: str, rate: float, seed: int) -> dict[str, Any]:
        """Trains a model with this seed; returns its scores, and its loss on text before and after."""

        def run() -> dict[str, Any]:
            peer = self.build(name, seed)
            text = {"before": asdict(text_of(peer, self.data, self.rows))}
            training = fit(peer, self.data, self.plan, lr=rate, steps=self.plan.steps, seed=seed)
            text["after"] = asdict(text_of(peer, self.data, self.rows))
            gates = {key: gate.tanh().item() for key, gate in peer.named_parameters() if is_gate(key)}
            figures = {"trained": trained(peer), "training": training, "text": text, "gates": gates}
            return figures | {"loss": validation_loss(peer, self.data)} | scores_of(peer, self.data)

        return self.kept(f"{name}, seed {seed}, {rate:g}", run)

    def speed(self, images: int) -> dict[str, Any]:
        """Measures steps per second with `images` images per row."""

        def run() -> dict[str, Any]:
            peers = {name: self.build(name, 0) for name in BUILDERS}
            found = speeds(peers, self.data, self.plan, images=images, rounds=ROUNDS)
            over = {name: found.speed_over("Arlow", name) for name in BUILDERS}
            return {name: {"steps_per_second": 1 / found.median(name), "arlow_over": over[name]} for name in BUILDERS}

        return self.kept(f"speed, {images}", run)

    def kept(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the figures of a run, from its file if it is complete."""
        path = self.runs / f"{name}.json"
        if not path.exists():
            start = time.time()
            write_whole(path, json.dumps(run(), indent=1) + "\n")
            print(f"{name}: {time.time() - start:.0f} s", flush=True)
        return json.loads(path.read_bytes())


def measure(study: Study) -> dict[str, Any]:
    """Measures all models: the search, the scores by seed, the controls, the speed."""
    models: dict[str, Any] = {}
    for name in BUILDERS:
        losses = search(lambda rate, name=name: study.search(name, rate))
        rate = min(losses, key=lambda one: losses[one])
        models[name] = {"search": {f"{one:g}": loss for one, loss in losses.items()}, "rate": rate, "seeds": {}}
    for seed in study.plan.seeds:
        for name, model in models.items():
            model["seeds"][str(seed)] = study.score(name, model["rate"], seed)
    rate, seeds = models["Arlow"]["rate"], study.plan.seeds
    sizes = {split: len(shown) for split, shown in study.data.splits.items()}
    return {
        "machine": machine(),
        "plan": asdict(study.plan) | {"images": sizes},
        "controls": controls_of(study.data),
        "models": models,
        "variants": {name: {str(seed): study.score(name, rate, seed) for seed in seeds} for name in VARIANTS},
        "speed": {str(images): study.speed(images) for images in IMAGES_A_ROW},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that `arlow data fetch` filled")
    parser.add_argument("--text", type=Path, default=Path("runs/first-light/text/hf"), help="text model of `make demo`")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), help="folder of features, runs and result.md")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)
    weights = arguments.data / "weights" / f"{ENCODER}.safetensors"
    encoder = VisionEncoder(ENCODER, image_size=224)
    load_encoder_weights(encoder, weights)
    encoder.requires_grad_(False).eval()
    transform = encoder.image_transform(**data_config_beside(weights, ENCODER))
    tokenizer, drawings = load_tokenizer(arguments.text), read_drawings(arguments.data / "packages")
    data = make_data(drawings, encoder, transform, tokenizer, arguments.out / "features", SIZES)
    rows = read_rows(arguments.data / "text" / "validation.jsonl", tokenizer)
    study = Study(arguments.text, data, rows, Plan(), arguments.out / "runs")
    figures = measure(study)
    write_whole(arguments.out / "result.json", json.dumps(figures, indent=1) + "\n")
    write_whole(arguments.out / "result.md", format_table(figures) + "\n")
    print(format_table(figures))


if __name__ == "__main__":
    main()
