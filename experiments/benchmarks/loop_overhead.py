"""CPU time of a run of `arlow fit` that goes neither into its model nor into its optimizer."""

import sys
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file

from arlow_vl import ArlowConfig, ArlowForCausalLM
from arlow_vl.data.text import LineTally, read_jsonl
from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from vision.encoder import VisionEncoder

SAMPLES = Path(__file__).parents[2] / "tests" / "samples"
STEP = 0.5
"""Seconds of the step that the rest is a share of: the model of this measurement is smaller, its rest is not."""
FIRST = 2
"""Steps that are not counted: files are opened, kernels chosen."""
IMAGES, ROW, ROWS = 4, 512, 2
MODEL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": ROW, "cross_attention_interval": 4,
}  # fmt: skip
"""As many layers, thus tensors, as the benchmarks' decoder of 25 M parameters."""


class StepClock(Callback):
    """CPU seconds of steps, and of what the model and the optimizer took of them."""

    def __init__(self) -> None:
        self.steps, self.inside, self.since, self.began = 0, 0.0, 0.0, 0.0
        self.seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model, optimizer = pl_module.model, trainer.optimizers[0]
        model.register_forward_pre_hook(lambda *_: self.enter())  # pyrefly: ignore[not-callable, missing-attribute]
        model.register_forward_hook(lambda *_: self.leave())  # pyrefly: ignore[not-callable, missing-attribute]
        clip = pl_module.configure_gradient_clipping

        def clip_then_enter(*args: Any, **kwargs: Any) -> None:
            """The optimizer runs the model inside of its step, and then Lightning clips: its own work begins there."""
            clip(*args, **kwargs)
            self.enter()

        pl_module.configure_gradient_clipping = clip_then_enter  # pyrefly: ignore[bad-assignment]
        optimizer.register_step_post_hook(lambda *_: self.leave())

    def enter(self) -> None:
        self.since = time.process_time()

    def leave(self) -> None:
        self.inside += time.process_time() - self.since

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        self.enter()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.leave()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if batch_idx + 1 == FIRST:
            self.began, self.inside = time.process_time(), 0.0
        elif batch_idx + 1 > FIRST:
            self.steps += 1
            self.seconds = time.process_time() - self.began - self.inside  # the last step's, before it is validated

    @property
    def outside(self) -> float:
        """Seconds a step that went elsewhere: data, Lightning, norms and clipping, logs."""
        return self.seconds / self.steps


def overheads(folder: Path, *, steps: int) -> dict[str, float]:
    """Seconds a step outside of model and optimizer, by what is trained on."""
    tokenizer = train_tokenizer(read_jsonl(SAMPLES / "text" / "train.jsonl", LineTally()), vocab_size=1024)
    tokenizer.save_pretrained(folder / "tokenizer")
    text = folder / "text"
    ArlowForCausalLM(ArlowConfig(vocab_size=len(tokenizer), **MODEL)).save_pretrained(text)
    tokenizer.save_pretrained(text)
    encoder = folder / "encoder.safetensors"
    save_file(VisionEncoder("test_vit", image_size=224).backbone.state_dict(), encoder)
    run = {"max_steps": steps, "validate_every": steps, "checkpoint_every": steps, "validation_samples": 1}
    common = {"run": run | {"threads": 1}, "optim": {"lr": 1e-3}}
    on_text = {
        "stage": "text", "tokenizer": str(folder / "tokenizer"), "model": MODEL, "row_length": ROW, "batch_size": ROWS,
        "train_text": str(SAMPLES / "text" / "train.jsonl"),
        "validation_text": str(SAMPLES / "text" / "validation.jsonl"),
        "policy": {"decoder": "train", "cross_attention": "frozen"},
    }  # fmt: skip
    on_images = {
        "stage": "image_text", "text_checkpoint": str(text),
        "vision": {"timm_name": "test_vit", "image_size": 224, "weights": str(encoder)},
        "sources": [source_of("train", IMAGES)], "validation_sources": [source_of("validation", 1)],
        "policy": {"vision": "frozen", "projector": "train", "cross_attention": "train", "decoder": "frozen"},
    }  # fmt: skip
    recipes = {
        f"text, {ROWS} rows of {ROW}": on_text,
        f"{IMAGES} images a step, decoded in the loop": on_images,
        f"{IMAGES} images a step, cached features": on_images | {"cache_features": str(folder / "features")},
    }
    found = {}
    for number, (name, recipe) in enumerate(recipes.items()):
        path = folder / f"{number}.yaml"
        path.write_text(yaml.safe_dump(common | recipe | {"run_dir": str(folder / f"run{number}")}))
        clock = StepClock()
        fit(parse_recipe(["--config", str(path)]), callbacks=[clock])
        found[name] = clock.outside
        print(f"{name}: {1e3 * clock.outside:.1f} ms a step", file=sys.stderr)
    return found


def source_of(split: str, samples: int) -> dict[str, Any]:
    data = str(SAMPLES / "captions" / f"{split}-*.tar")
    return {"name": "captions", "data": data, "kind": "captions", "samples_per_batch": samples}
