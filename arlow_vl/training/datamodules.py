"""Lightning data modules of a stage, whose data are checked before training starts."""

import sys
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from arlow_vl.data.collate import with_counts
from arlow_vl.data.loader import Packing, ResumableLoader
from arlow_vl.data.packing import collate_rows, pack_documents
from arlow_vl.data.prompts import document_ends
from arlow_vl.data.quarantine import NAME as QUARANTINE
from arlow_vl.data.quarantine import Quarantine
from arlow_vl.data.sample_dataset import SampleDataset
from arlow_vl.data.sequential import SequentialLoader
from arlow_vl.data.sources import Batch, Collate, Source
from arlow_vl.data.text_files import shown_source
from arlow_vl.data.trained_prompts import TrainedPrompts, prompts_of
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.layout import BatchLayout
from arlow_vl.printing import print_line
from arlow_vl.training.ranks import data_rank, gathered
from arlow_vl.training.recipe import Recipe, TextRecipe

ON_THE_CPU = ("tiles_per_image", "image_grids", "encoder_lengths")
"""Entries of a batch that stay on the CPU: they determine shapes, for which the model would wait for the device."""


class StageData(LightningDataModule):
    """Training and validation sources as the two loaders of a run."""

    def __init__(
        self,
        recipe: Recipe,
        training: Sequence[Source],
        validation: Sequence[Source],
        collate: Collate,
        *,
        validation_collate: Collate | None = None,
        packing: Packing | None = None,
    ) -> None:
        super().__init__()
        run, quarantine = recipe.run, Quarantine(recipe.run_dir / QUARANTINE)
        self.tensor_parallel = run.engine.tensor_parallel
        rank, ranks = data_rank(run.engine)
        self.training = ResumableLoader(
            training,
            collate,
            seed=run.seed,
            num_batches=run.max_steps * run.accumulate_grad_batches,
            workers=run.workers,
            rank=rank,
            ranks=ranks,
            packing=packing,
            on_fault=quarantine.add,
        )
        self.validation = SequentialLoader(
            validation,
            validation_collate or collate,
            max_samples=run.validation_samples,
            rank=rank,
            ranks=ranks,
            on_fault=quarantine.add,
        )

    @cached_property
    def trained_prompts(self) -> list[TrainedPrompts]:
        """Returns the prompts of the training data, which are saved with the model; [] for text alone."""
        samples = [of.dataset.samples for of in self.training.sources if isinstance(of.dataset, SampleDataset)]
        return [prompts_of(samples)] if samples else []

    def train_dataloader(self) -> ResumableLoader:
        return self.training

    def val_dataloader(self) -> SequentialLoader:
        return self.validation

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        stays = {name: batch[name] for name in ON_THE_CPU if name in batch}
        goes = {name: value for name, value in batch.items() if name not in stays}
        return super().transfer_batch_to_device(goes, device, dataloader_idx) | stays

    def share_bad_items(self) -> None:
        """Shares the counts of unusable samples among all processes, and checks their sum against the limit.

        The processes of a tensor-parallel group read the same samples, which count once.

        Raises:
            DataError: there are too many; on all processes alike.
        """
        readers = [*self.training.readers.values(), *self.validation.readers.values()]
        of_ranks = gathered([reader.state_dict() for reader in readers])[:: self.tensor_parallel]
        for reader, states in zip(readers, zip(*of_ranks, strict=True), strict=True):
            reader.share(states)

    def report_bad_items(self) -> None:
        """Prints how many samples were unusable during the run, by reason, and what did not fit into a row."""
        for reader in (*self.training.readers.values(), *self.validation.readers.values()):
            if reader.bad:
                print_line(f"source {reader.source}: {reader.summary()}", file=sys.stderr)
        unfit = self.training.window.counts if self.training.window else ()
        if listed := ", ".join(f"{what} {count:,}" for what, count in unfit if count):
            print_line(
                f"packed rows, in all: {listed}; raise packing.row_tokens or packing.row_images", file=sys.stderr
            )


class TextData(StageData):
    """Packed rows of a text recipe's training and validation documents."""

    def __init__(self, recipe: TextRecipe, tokenizer, config: ArlowConfig) -> None:
        folder = recipe.packed_folder or recipe.run_dir / "packed"
        # The smaller one first, as its faults show sooner.
        pack = partial(pack_documents, max_bad_fraction=recipe.max_bad_fraction)
        self.validation_rows = pack(recipe.validation_text, tokenizer, recipe.row_length, folder)
        rows = pack(recipe.train_text, tokenizer, recipe.row_length, folder, max_tokens=recipe.max_tokens)
        for path, packed in ((recipe.train_text, rows), (recipe.validation_text, self.validation_rows)):
            print_line(f"{shown_source(path)}: {packed.summary()}", file=sys.stderr)
        sources = (
            Source(name=name, dataset=dataset, samples_per_batch=recipe.batch_size)
            for name, dataset in (("train", rows), ("validation", self.validation_rows))
        )
        training, validation = ([source] for source in sources)
        ends = document_ends(tokenizer)

        def collate(rows: list[Any]) -> Batch:
            batch = collate_rows(rows, *ends)
            return with_counts(batch, lambda b: BatchLayout.of_batch(config, b["input_ids"], b["position_ids"]))

        super().__init__(recipe, training, validation, collate)
