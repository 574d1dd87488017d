"""Callback that looks at the model during training, always with the same validation samples."""

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from arlow_vl.data.bad_items import UNUSABLE
from arlow_vl.data.order import shuffled_order
from arlow_vl.data.prompts import IGNORED
from arlow_vl.data.sample_dataset import EncodedSample, EncodedText
from arlow_vl.data.sequential import SequentialLoader
from arlow_vl.data.sources import Source
from arlow_vl.errors import CheckpointError
from arlow_vl.json_text import json_text
from arlow_vl.training.averaging import MovingAverage
from arlow_vl.training.logs import LineFile
from arlow_vl.training.look_measurements import (
    Chosen,
    attention_shares,
    evaluating,
    losses_with_exchanged_images,
    plain_text,
    prompt_and_reference,
    write_texts,
)
from arlow_vl.training.look_results import Look, SampleLook, SourceLook
from arlow_vl.training.settings import WatchConfig
from arlow_vl.training.steps import Readings, step_ends
from vision.decoding.image import decode_image
from vision.whole_files import write_whole

FILE, IMAGES = "looks.jsonl", "looks"
TRIED = 8
"""Samples that are tried for each one wanted, to find usable ones with different images."""
THUMBNAIL = 192
"""Longer side of the images in the run folder, in pixels."""


@runtime_checkable
class LookListener(Protocol):
    """Log that receives looks."""

    def look_taken(self, look: Look) -> None: ...


class Looks(Callback):
    """Takes a look at each validation or every n steps, writes it to looks.jsonl, and passes it to the listeners.

    Training is not affected, and no random numbers are drawn. Must come after the moving average in Trainer's list, and
    before Checkpointing, so that its line belongs to the checkpoint of the same step. All processes take part, as
    they run the model together; the first one writes.
    """

    def __init__(
        self,
        run_dir: Path,
        loader: SequentialLoader,
        tokenizer: Any,
        watch: WatchConfig,
        listeners: Sequence[LookListener],
        readings: Readings,
        averages: Sequence[MovingAverage],
    ) -> None:
        self.run_dir, self.loader, self.tokenizer = run_dir, loader, tokenizer
        self.watch, self.listeners = watch, listeners
        self.readings, self.averages = readings, averages
        self.lines = LineFile(run_dir / FILE)
        self.chosen: dict[str, list[Chosen]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.keep_until(trainer.global_step)
        self.chosen = {s.name: choose(s, self.loader.max_samples, self.watch.show_samples) for s in self.loader.sources}

    def keep_until(self, step: int) -> None:
        """Drops the looks after the checkpoint, and the one at the validation of its step, which is repeated."""

        def is_before(line: str) -> bool:
            look = json.loads(line)
            return look["step"] < step or (look["step"] == step and not look["is_validation"])

        self.lines.keep(is_before)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.watch.show_every is None:
            self._take(trainer, pl_module, is_validation=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        every = self.watch.show_every
        if every is None or not step_ends(trainer, batch_idx) or trainer.global_step % every:
            return
        self.readings.read()
        for average in self.averages:
            average.on_validation_start(trainer, pl_module)
        self._take(trainer, pl_module, is_validation=False)
        for average in self.averages:
            average.on_validation_end(trainer, pl_module)
        self.readings.go_on()

    def _take(self, trainer: Trainer, module: Any, *, is_validation: bool) -> None:
        sources: list[SourceLook] = []
        fault = None
        try:
            with evaluating(module), trainer.precision_plugin.val_step_context():
                sources = [self._look_at(trainer, module, name, some) for name, some in self.chosen.items() if some]
        except CheckpointError:
            fault = "writes nothing, as its logits are not finite"
        model: Any = module.model
        gates = model.gate_openings() if hasattr(model, "gate_openings") else {}
        named = {f"layer {layer}": pair for layer, pair in gates.items()}
        look = Look(trainer.global_step, sources, named, is_validation, fault)
        if trainer.is_global_zero:
            self.lines.write(json_text(look.to_plain()))
            for listener in self.listeners:
                listener.look_taken(look)

    def _look_at(self, trainer: Trainer, module: Any, name: str, chosen: Sequence[Chosen]) -> SourceLook:
        collate: Any = self.loader.collate
        stage: Any = module

        def loss(batch: dict[str, Any]) -> Any:
            return stage.loss(trainer.strategy.batch_to_device(batch, module.device))

        texts = write_texts(module.model, self.tokenizer, chosen, collate)
        losses = losses_with_exchanged_images(loss, chosen, collate)
        samples = [
            SampleLook(
                key=sample.key,
                prompt=plain_text(self.tokenizer, sample.prompt),
                reference=plain_text(self.tokenizer, sample.reference),
                written=text,
                images=self._thumbnails(sample) if trainer.is_global_zero else [],
                attention=attention_shares(module.model, loss, sample, collate),
            )
            for sample, text in zip(chosen, texts, strict=True)
        ]
        return SourceLook(name, samples, *(losses or ()))

    def _thumbnails(self, sample: Chosen) -> list[str]:
        """Returns the paths of a sample's thumbnails; each is named by its image's hash, so it is written once."""
        names = []
        for image in sample.placed:
            name = f"{IMAGES}/{image.sha256[:16]}.jpg"
            if not (self.run_dir / name).exists():
                shown = decode_image(image.read_image(), name=image.name).convert("RGB")
                shown.thumbnail((THUMBNAIL, THUMBNAIL))
                with io.BytesIO() as file:
                    shown.save(file, "JPEG", quality=85)
                    write_whole(self.run_dir / name, file.getvalue())
            names.append(name)
        return names

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.lines.sync()


def choose(source: Source, max_samples: int | None, count: int) -> list[Chosen]:
    """Returns up to `count` usable samples that validation reads too, with different images as far as possible.

    The random draw is the same each time. Unusable samples are skipped here and reported by the validation.
    """
    size = len(source.dataset) if max_samples is None else min(len(source.dataset), max_samples)
    drawn = shuffled_order(0, source.name, 0, len(source.dataset), np.arange(min(size, TRIED * count))).tolist()
    chosen: list[Chosen] = []
    others: list[Chosen] = []
    for index in drawn:
        if len(chosen) == count:
            break
        try:
            sample = _chosen(source, index)
        except UNUSABLE:
            continue
        seen = {image.sha256 for before in chosen for image in before.placed}
        is_seen = any(image.sha256 in seen for image in sample.placed)
        (others if is_seen else chosen).append(sample)
    return (chosen + others)[:count]


def _chosen(source: Source, index: int) -> Chosen:
    dataset: Any = source.dataset
    item, placed = dataset[index], []
    if isinstance(item, np.ndarray):
        item = EncodedSample([longest_document(item, dataset.facts.bos_token_id)], [])
    elif item.images:
        placed = dataset.placed_images(index)
    return Chosen(f"{source.name}:{dataset.key(index)}", item, *prompt_and_reference(item.texts[0]), placed)


def longest_document(row: np.ndarray, bos_token_id: int) -> EncodedText:
    """Returns the longest document, or part of one, in a packed row; all but its first token is learnt."""
    begins = [0, *np.flatnonzero(row == bos_token_id).tolist(), len(row)]
    start, end = max(itertools.pairwise(begins), key=lambda piece: piece[1] - piece[0])
    ids = row[start:end].tolist()
    return EncodedText(ids, [IGNORED, *ids[1:]])
