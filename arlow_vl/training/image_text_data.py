"""Data of an image-text run: every source is indexed and checked before training, and faults are reported."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arlow_vl.data.bad_share import most_bad, refuse_bad_share
from arlow_vl.data.collate import LayoutOf, PackedRowsCollate, SampleCollate
from arlow_vl.data.images import CachedImages, DecodedImages
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import Index, IndexedSamples
from arlow_vl.data.index.report import check_left_out, left_out, report_left_out
from arlow_vl.data.loader import Packing
from arlow_vl.data.order import shuffled_order
from arlow_vl.data.packing import tokenised
from arlow_vl.data.rows import ENOUGH, RowBudget
from arlow_vl.data.sample_dataset import SampleDataset
from arlow_vl.data.samples import TASKS, ImageRef, TextTask
from arlow_vl.data.sources import Source
from arlow_vl.data.tokens.documents import TokenDocuments
from arlow_vl.data.tokens.reader import TokenizedText
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, print_line
from arlow_vl.progress import ProgressLine
from arlow_vl.training.datamodules import StageData
from arlow_vl.training.ranks import is_first
from arlow_vl.training.recipe import ImageTextRecipe, PackingConfig, SourceConfig
from arlow_vl.training.settings import mixture_of

TASKS_OF_KIND: dict[str, tuple[TextTask, ...]] = {
    "captions": ("caption",),
    "questions": ("question",),
    "conversations": ("conversation",),
    "documents": ("document",),
    "all": TASKS,
}


@dataclass(frozen=True)
class CheckedSource:
    """Source of a recipe that is indexed and has enough usable samples."""

    config: SourceConfig
    samples: IndexedSamples | TokenizedText
    """Samples with a text of the source's kind; tokenised documents for text alone."""
    bad: int = 0
    """Unusable samples, which are left out."""

    def warn(self, sentence: str) -> None:
        print_line(f"source {self.config.name}: {sentence}", file=sys.stderr)


def checked_sources(recipe: ImageTextRecipe, tokenizer: Any) -> list[CheckedSource]:
    """Returns the training sources, then the validation sources; prints what will not be used of them.

    Raises:
        DataError: a source has no data, too many unusable samples, or no text of its kind.
    """
    sources = [_checked(config, recipe, tokenizer) for config in (*recipe.sources, *recipe.validation_sources)]
    if recipe.packing is not None:
        for source in sources[: len(recipe.sources)]:
            _refuse_too_many_images(source, recipe.packing.row_images)
    return sources


def _checked(config: SourceConfig, recipe: ImageTextRecipe, tokenizer: Any) -> CheckedSource:
    where = f"source {config.name}"
    if config.images is not None and not config.images.is_dir():
        raise DataError(
            f"{where}: images is {config.images}, but there is no such folder; name it, or leave images out"
        )
    try:
        if config.kind == "text":
            folder, limit = recipe.run_dir / "packed", recipe.max_bad_fraction
            return CheckedSource(config, tokenised(config.data, tokenizer, folder, max_bad_fraction=limit))
        indexes = _indexes(config, recipe)
    except DataError as error:
        hint = "; `arlow data fetch` gets the data of experiments/" if str(error).startswith("no such file") else ""
        raise DataError(f"{where}: {error}{hint}") from error
    if report := report_left_out(where, indexes):
        print_line(report, file=sys.stderr)
    tasks = TASKS_OF_KIND[config.kind]
    check_left_out(indexes, recipe.max_bad_fraction, where=where, tasks=tasks)
    samples, bad = IndexedSamples(indexes, tasks), left_out(index.header for index in indexes)
    source = CheckedSource(config, samples, sum(one.count for one in bad.values()))
    count, kind = sum(map(len, indexes)), config.kind.removesuffix("s")
    if not len(samples):
        raise DataError(
            f"{where}: none of its {number_of(count, 'sample')} has a usable {kind}; set kind to what they have"
        )
    if without := count - len(samples):
        source.warn(f"{without:,} of {count:,} samples have no {kind} and are left out")
    return source


def _refuse_too_many_images(source: CheckedSource, row_images: int) -> None:
    """Raises DataError if no sample drawn from a source has few enough images for a row."""
    samples, name = source.samples, source.config.name
    if isinstance(samples, TokenizedText):
        return
    some = shuffled_order(0, name, 0, len(samples), np.arange(min(ENOUGH, len(samples)))).tolist()
    if (fewest := min(len(samples.sample(number).images) for number in some)) > row_images:
        raise DataError(
            f"source {name}: no sample fits into a row, as they have {number_of(fewest, 'image')} and "
            f"more; raise packing.row_images, which is {row_images}"
        )


def _indexes(config: SourceConfig, recipe: ImageTextRecipe) -> list[Index]:
    line = ProgressLine(f"index of {config.name}", "parts")
    return indexes_of(
        config.data,
        images=config.images,
        format=config.format,
        workers=max(1, recipe.run.workers),
        compares_images=is_first(),  # for all processes, which come here after it
        progress=lambda samples, ready, parts: line(ready, parts),
    )


def check_refused_images(sources: Sequence[CheckedSource], refused: dict[str, str], max_bad_fraction: float) -> None:
    """Raises DataError if images that could not be encoded make too large a share of a source's samples unusable.

    `refused` maps the SHA-256 of such images to the reason.
    """
    for source in sources if refused else ():
        if isinstance(source.samples, TokenizedText):
            continue
        reasons: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for number in range(len(source.samples)):
            sample = source.samples.sample(number)
            hashes = (image.sha256.hex() for image in sample.images if isinstance(image, ImageRef))
            if reason := next((refused[sha256] for sha256 in hashes if sha256 in refused), None):
                reasons[f"image_{reason}"] += 1
                examples.setdefault(f"image_{reason}", sample.key)
        used, where = len(source.samples) - reasons.total(), f"source {source.config.name}: "
        if reasons and source.bad:
            reasons["left_out_before"], examples["left_out_before"] = source.bad, "told at the start"
        refuse_bad_share("samples", used, reasons, examples, max_bad_fraction, where=where)


class ImageTextData(StageData):
    """Checked sources of an image-text recipe, in padded batches or packed rows; `images` gives pixels or features."""

    def __init__(
        self,
        recipe: ImageTextRecipe,
        sources: Sequence[CheckedSource],
        tokenizer,
        images: DecodedImages | CachedImages,
        layout_of: LayoutOf,
    ) -> None:
        count, packing = len(recipe.sources), None
        how: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "layout_of": layout_of}
        collate = SampleCollate(images, **how)
        validation = [_source(source, tokenizer, images, recipe, one_text=True) for source in sources[count:]]
        training = [_source(s, tokenizer, images, recipe, one_text=not recipe.packing) for s in sources[:count]]
        training_collate = collate
        if recipe.packing:
            training_collate = PackedRowsCollate(images, row_tokens=recipe.packing.row_tokens, **how)
            sizes = {source.name: len(source.dataset) for source in training}
            packing = packing_of(recipe.packing, recipe.sources, sizes, recipe.run.accumulate_grad_batches)
            if len(sizes) > 1:
                print_line(packing.mixture.describe(), file=sys.stderr)
        super().__init__(recipe, training, validation, training_collate, validation_collate=collate, packing=packing)


def _source(
    source: CheckedSource,
    tokenizer,
    images: DecodedImages | CachedImages,
    recipe: ImageTextRecipe,
    *,
    one_text: bool,
) -> Source:
    config = source.config
    if isinstance(source.samples, TokenizedText):
        dataset = TokenDocuments(source.samples, max_length=recipe.max_length)
    else:
        dataset = SampleDataset(source.samples, tokenizer, images, max_length=recipe.max_length, one_text=one_text)
    try:
        look = dataset.look(recipe.run.seed)
    except DataError as error:
        raise DataError(f"source {config.name}: {error}") from error
    for sentence in look.warnings(recipe.max_length):
        source.warn(sentence)
    if recipe.packing and isinstance(dataset, SampleDataset) and not one_text:
        line = ProgressLine(f"tokens of {config.name}", "samples")
        dataset.count_tokens(recipe.run_dir / "packed", workers=max(1, recipe.run.workers), progress=line)
    samples_left = max(0, most_bad(recipe.max_bad_fraction, source.bad + len(source.samples)) - source.bad)
    expected = look.without_room * len(dataset) // max(1, look.texts)  # reported already, and no fault of the data
    return Source(
        name=config.name,
        dataset=dataset,
        samples_per_batch=config.samples_per_batch or 1,
        max_bad=samples_left,
        max_bad_texts=most_bad(recipe.max_bad_fraction, len(dataset)) + 2 * expected,
    )


def packing_of(
    config: PackingConfig, sources: Sequence[SourceConfig], sizes: Mapping[str, int], batches_per_step: int
) -> Packing:
    """Returns the settings by which the loader packs rows.

    `sizes` has the number of samples of each source; for text alone, of pieces of `max_length` tokens.
    """
    return Packing(
        budget=RowBudget(tokens=config.row_tokens, images=config.row_images),
        rows_per_batch=config.rows_per_batch,
        mixture=mixture_of(config, sources, sizes),
        rows_per_step=config.rows_per_batch * batches_per_step,
    )
