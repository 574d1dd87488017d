"""Arlow beside three other ways to show images to a text model: the same text model, features, data and budget.

    make demo                                   # once: text model, drawings, encoder weights
    python -m experiments.peers.run

Every run is kept in the folder of the results, and one that was stopped goes on where it was.
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

from arlow_vl.data.scenes.drawings import Drawings, read_drawings
from arlow_vl.evaluation.held_out_text import Rows, read_rows
from arlow_vl.models.folders import load_tokenizer
from arlow_vl.training.build import data_config_beside
from experiments.benchmarks.measure import machine
from experiments.peers.data import Data, make_data
from experiments.peers.models import BUILDERS, Peer, trained
from experiments.peers.scoring import controls_of, scores_of, text_of
from experiments.peers.table import told
from experiments.peers.training import Plan, fit, search, speeds, validation_loss
from vision.encoder import VisionEncoder
from vision.weights import load_encoder_weights
from vision.whole_files import write_whole

SIZES = {"train": 5000, "validation": 100, "test-new": 300, "test-pairs": 300}
ENCODER = "tf_efficientnet_lite0"
IMAGES_A_ROW = (1, 4)
ROUNDS = 7


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    text: Path
    tokenizer: Any
    data: Data
    rows: Rows
    features: int
    side: int
    plan: Plan
    runs: Path

    def build(self, name: str, seed: int) -> Peer:
        torch.manual_seed(seed)
        return BUILDERS[name](self.text, self.features, self.side).eval()

    def trained_loss(self, name: str, rate: float) -> float:
        """Validation loss of a run of the search."""

        def run() -> dict[str, Any]:
            peer = self.build(name, 0)
            steps, pad = self.plan.search_steps, self.tokenizer.pad_token_id
            training = fit(peer, self.data, self.plan, lr=rate, steps=steps, seed=0, pad=pad)
            return {"loss": validation_loss(peer, self.data, pad), "training": training}

        return self.kept(f"{name}, search, {rate:g}", run)["loss"]

    def scored(self, name: str, rate: float, seed: int) -> dict[str, Any]:
        """Scores of a model trained with this seed, and of its text before and after."""

        def run() -> dict[str, Any]:
            peer, pad = self.build(name, seed), self.tokenizer.pad_token_id
            before = text_of(peer, self.tokenizer, self.rows)
            training = fit(peer, self.data, self.plan, lr=rate, steps=self.plan.steps, seed=seed, pad=pad)
            after = text_of(peer, self.tokenizer, self.rows)
            gates = {
                key: parameter.tanh().item() for key, parameter in peer.named_parameters() if key.endswith("_gate")
            }
            return {
                "trained": trained(peer),
                "training": training,
                "loss": validation_loss(peer, self.data, pad),
                **scores_of(peer, self.data, self.tokenizer),
                "text": {"before": asdict(before), "after": asdict(after)},
                "gates": gates,
            }

        return self.kept(f"{name}, seed {seed}, {rate:g}", run)

    def speed(self, images: int) -> dict[str, Any]:
        peers = {name: self.build(name, 0) for name in BUILDERS}
        timings = speeds(peers, self.data, self.plan, self.tokenizer, images=images, rounds=ROUNDS)
        return {
            name: {"steps_per_second": 1 / timings.median(name), "arlow_over": timings.speed_over("Arlow", name)}
            for name in BUILDERS
        }

    def kept(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a run gave, from its file where it has ended."""
        path = self.runs / f"{name}.json"
        if not path.exists():
            start = time.time()
            write_whole(path, json.dumps(run(), indent=1) + "\n")
            print(f"{name}: {time.time() - start:.0f} s", flush=True)
        return json.loads(path.read_bytes())


def study_of(
    text: Path,
    encoder: VisionEncoder,
    transform: Any,
    drawings: Drawings,
    held_out: Path,
    out: Path,
    sizes: dict,
    plan: Plan,
) -> Study:
    tokenizer = load_tokenizer(text)
    data = make_data(drawings, encoder, transform, tokenizer, out / "features", sizes)
    patches = round(encoder.num_patches**0.5)
    rows = read_rows(held_out, tokenizer)
    return Study(text, tokenizer, data, rows, encoder.embed_dim, patches, plan, out / "runs")


def measure(study: Study) -> dict[str, Any]:
    """Figures of all models: the search, the scores by seed, the controls, the speed."""
    models: dict[str, Any] = {}
    for name in BUILDERS:
        losses = search(lambda rate, name=name: study.trained_loss(name, rate))
        rate = min(losses, key=lambda one: losses[one])
        models[name] = {"search": {f"{one:g}": loss for one, loss in losses.items()}, "rate": rate, "seeds": {}}
    for seed in study.plan.seeds:
        for name, model in models.items():
            model["seeds"][str(seed)] = study.scored(name, model["rate"], seed)
    sizes = {split: len(shown) for split, shown in study.data.splits.items()}
    return {
        "machine": machine(),
        "plan": asdict(study.plan) | {"images": sizes},
        "controls": controls_of(study.data),
        "models": models,
        "speed": {
            str(images): study.kept(f"speed, {images}", lambda n=images: study.speed(n)) for images in IMAGES_A_ROW
        },
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
    drawings, held_out = read_drawings(arguments.data / "packages"), arguments.data / "text" / "validation.jsonl"
    study = study_of(arguments.text, encoder, transform, drawings, held_out, arguments.out, SIZES, Plan())
    figures = measure(study)
    write_whole(arguments.out / "result.json", json.dumps(figures, indent=1) + "\n")
    write_whole(arguments.out / "result.md", told(figures) + "\n")
    print(told(figures))


if __name__ == "__main__":
    main()
