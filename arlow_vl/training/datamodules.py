"""The data of a stage, checked and ready before Lightning starts."""

import glob
import sys
from collections.abc import Sequence
from functools import partial

from lightning.pytorch import LightningDataModule

from arlow_vl.data.bad_share import most_bad
from arlow_vl.data.image_text import (
    EXAMPLES,
    CachedImages,
    DecodedImages,
    ImageTextCollate,
    ImageTextDataset,
    count_cut,
    with_room,
)
from arlow_vl.data.loader import Collate, ResumableLoader, SequentialLoader, Source
from arlow_vl.data.packing import collate_rows, pack_documents
from arlow_vl.data.shards import ShardScan, check_bad_share, check_questions, report_scan, scan_shards
from arlow_vl.errors import DataError
from arlow_vl.printing import print_line
from arlow_vl.training.recipe import ImageTextRecipe, Recipe, SourceConfig, TextRecipe


class StageData(LightningDataModule):
    """Training and validation sources as the two loaders of a run."""

    def __init__(
        self, recipe: Recipe, training: Sequence[Source], validation: Sequence[Source], collate: Collate
    ) -> None:
        super().__init__()
        run = recipe.run
        num_batches = run.max_steps * run.accumulate_grad_batches
        self.training = ResumableLoader(training, collate, seed=run.seed, num_batches=num_batches)
        self.validation = SequentialLoader(validation, collate, max_samples=run.validation_samples)

    def train_dataloader(self) -> ResumableLoader:
        return self.training

    def val_dataloader(self) -> SequentialLoader:
        return self.validation

    def report_bad_images(self) -> None:
        """Says how many images turned out unusable while the run went on, by reason."""
        for reader in (*self.training.readers.values(), *self.validation.readers.values()):
            if reader.bad:
                print_line(f"source {reader.source.name}: {reader.summary()}", file=sys.stderr)


class TextData(StageData):
    """Packed rows of the recipe's two texts."""

    def __init__(self, recipe: TextRecipe, tokenizer) -> None:
        folder = recipe.packed_folder or recipe.run_dir / "packed"
        # The smaller one first: it tells soonest what is wrong.
        pack = partial(pack_documents, max_bad_fraction=recipe.max_bad_fraction)
        self.validation_rows = pack(recipe.validation_text, tokenizer, recipe.row_length, folder)
        rows = pack(recipe.train_text, tokenizer, recipe.row_length, folder, max_tokens=recipe.max_tokens)
        for path, packed in ((recipe.train_text, rows), (recipe.validation_text, self.validation_rows)):
            print_line(f"{path}: {packed.summary()}", file=sys.stderr)
        sources = (
            Source(name=name, dataset=dataset, samples_per_batch=recipe.batch_size)
            for name, dataset in (("train", rows), ("validation", self.validation_rows))
        )
        training, validation = ([source] for source in sources)
        super().__init__(recipe, training, validation, partial(collate_rows, bos_token_id=tokenizer.bos_token_id))


class ImageTextData(StageData):
    """The recipe's sources, already scanned, with their images as `images` gives them."""

    def __init__(
        self,
        recipe: ImageTextRecipe,
        scans: Sequence[ShardScan],
        tokenizer,
        images: DecodedImages | CachedImages,
    ) -> None:
        configs = [*recipe.sources, *recipe.validation_sources]
        sources = [
            _source(config, scan, tokenizer, images, recipe) for config, scan in zip(configs, scans, strict=True)
        ]
        training, validation = sources[: len(recipe.sources)], sources[len(recipe.sources) :]
        super().__init__(recipe, training, validation, ImageTextCollate(images, pad_token_id=tokenizer.pad_token_id))


def _source(
    config: SourceConfig,
    scan: ShardScan,
    tokenizer,
    images: DecodedImages | CachedImages,
    recipe: ImageTextRecipe,
) -> Source:
    examples = EXAMPLES[config.kind](scan.samples)
    kept = with_room(examples, tokenizer, recipe.max_length)
    if too_long := len(examples) - len(kept):
        _tell(config, f"{too_long:,} prompts fill max_length {recipe.max_length} and are left out")
    if examples and not kept:
        raise DataError(f"source {config.name}: no prompt leaves room for a completion; raise max_length")
    if cut := count_cut(kept, tokenizer, recipe.max_length):
        _tell(config, f"{cut:,} of {len(kept):,} completions are cut at max_length {recipe.max_length}")
    bad = scan.skipped.total()
    return Source(
        name=config.name,
        dataset=ImageTextDataset(kept, tokenizer, images, max_length=recipe.max_length),
        samples_per_batch=config.samples_per_batch,
        max_bad=max(0, most_bad(recipe.max_bad_fraction, bad + len(scan.samples)) - bad),
    )


def _tell(config: SourceConfig, sentence: str) -> None:
    print_line(f"source {config.name}: {sentence}", file=sys.stderr)


def scan_sources(recipe: ImageTextRecipe) -> list[ShardScan]:
    """A scan for each source, then one for each validation source; says what will not be used.

    Raises:
        DataError: shards are not there, too much in them is unusable, or a source of questions has none.
    """
    scans = []
    for config in (*recipe.sources, *recipe.validation_sources):
        scans.append(_scan(config))
        report_scan(f"source {config.name}", scans[-1])
        _check(config, scans[-1], recipe)
    return scans


def _scan(config: SourceConfig) -> ShardScan:
    paths = sorted(glob.glob(config.shards))
    if not paths:
        raise DataError(
            f"source {config.name}: no shard matches {config.shards}; `arlow data fetch` gets the real data"
        )
    return scan_shards(paths)


def _check(config: SourceConfig, scan: ShardScan, recipe: ImageTextRecipe) -> None:
    check_bad_share(scan, recipe.max_bad_fraction, where=f"source {config.name}: ")
    if config.kind == "questions":
        check_questions(scan, recipe.max_bad_fraction, where=f"source {config.name}: ")
        without = sum(not sample.questions for sample in scan.samples)
        if without == len(scan.samples):
            raise DataError(
                f"source {config.name}: none of its {without:,} samples has a usable question; each .json needs a list "
                "under 'questions', or set kind to captions"
            )
        if without:
            _tell(config, f"{without:,} of {len(scan.samples):,} samples have no question and are left out")


def check_scans(recipe: ImageTextRecipe, scans: Sequence[ShardScan]) -> None:
    """Says what is not used now that the images were decoded. Raises DataError where that is too large a share."""
    for config, scan in zip((*recipe.sources, *recipe.validation_sources), scans, strict=True):
        if any(sample.reason.startswith("image_") for sample in scan.bad):
            report_scan(f"source {config.name}", scan)
        _check(config, scan, recipe)
