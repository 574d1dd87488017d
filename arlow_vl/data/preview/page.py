"""preview.html: a random draw of a source's samples on one page without scripts or links, with the images inside."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from arlow_vl.data.index.reading import Index, IndexedSamples
from arlow_vl.data.index.records import refs
from arlow_vl.data.order import shuffled_order
from arlow_vl.data.preview.images import ShownImage, shown_image
from arlow_vl.data.preview.tokens import ShownText, shown_text
from arlow_vl.errors import CheckpointError, DataError
from arlow_vl.models.auto import ArlowProcessor
from arlow_vl.models.folders import load_tokenizer, one_sentence
from arlow_vl.pages import page_environment
from arlow_vl.printing import visible
from vision.transform import ImageTransform
from vision.whole_files import write_whole

TEMPLATE = "page.html"
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
MOST_IMAGES, MOST_TEXTS = 16, 16
"""Maximum numbers of images and texts of a sample on the page."""


class Preprocessing(NamedTuple):
    """Tokenizer and image transform of a model, and the images that its tokens see."""

    tokenizer: Any
    transform: ImageTransform | None
    """None: the folder holds a text model, which takes no images."""
    sees_all: bool
    """True: a token sees all images before it; False: only the last group of them."""


@dataclass(frozen=True)
class ShownSample:
    key: str
    source: str
    images: list[ShownImage]
    texts: list[ShownText]
    more_images: int
    more_texts: int


def open_processor(folder: Path) -> Preprocessing:
    """Opens a model folder, or one with only the tokenizer and the processor. Raises CheckpointError."""
    if any((folder / name).is_file() for name in PROCESSOR_FILES):
        with one_sentence(folder, "the processor and its tokenizer"):
            processor = ArlowProcessor.from_pretrained(folder)
        tokenizer, transform = processor.tokenizer, processor.image_processor.transform
    else:
        tokenizer, transform = load_tokenizer(folder), None
    config: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        with one_sentence(folder, "config.json"):
            config = json.loads((folder / "config.json").read_text())
            config = config.get("text_config", config)
    return Preprocessing(tokenizer, transform, config.get("cross_attention_sees") == "all_previous")


def write_preview(
    indexes: Sequence[Index], folder: Path, output: Path, *, title: str, samples: int, max_length: int
) -> int:
    """Writes the page and returns the number of samples on it. Everything from outside is escaped.

    Raises:
        DataError: the source has no usable sample.
        CheckpointError: the folder has no tokenizer, or no processor where a sample has images.
    """
    source = IndexedSamples(indexes)
    if not len(source):
        raise DataError(f"{visible(title)}: no usable sample; `arlow data verify` says why")
    processor = open_processor(folder)
    shown = list(_shown(source, processor, folder, samples, max_length))
    texts = [text for sample in shown for text in sample.texts]
    page = (
        page_environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            title=visible(title),
            model=visible(str(folder)),
            samples=shown,
            of=len(source),
            max_length=max_length,
            tokens=sum(text.length for text in texts),
            trained=sum(text.trained for text in texts),
            cut=sum(text.cut > 0 and not text.fault for text in texts),
            unused=sum(text.fault is not None for text in texts),
            sees_all=processor.sees_all,
        )
    )
    write_whole(output, page)
    return len(shown)


def _shown(
    source: IndexedSamples, processor: Preprocessing, folder: Path, samples: int, max_length: int
) -> Iterator[ShownSample]:
    places = np.arange(min(samples, len(source)))
    for position in shuffled_order(0, "preview", 0, len(source), places).tolist():
        sample, (index, _) = source.sample(position), source.locate(position)
        images, texts = refs(sample), sample.texts
        if images and processor.transform is None:
            raise CheckpointError(
                f"{folder} holds no processor, and sample {visible(sample.key)} has images; "
                "name the hf folder of a vision run"
            )
        yield ShownSample(
            key=visible(sample.key),
            source=visible(str(index.base / index.header.source)),
            images=[shown_image(processor.transform, image, sample.key) for image in images[:MOST_IMAGES]]
            if processor.transform
            else [],
            texts=[
                shown_text(processor.tokenizer, text, max_length, sees_all=processor.sees_all)
                for text in texts[:MOST_TEXTS]
            ],
            more_images=max(0, len(images) - MOST_IMAGES),
            more_texts=max(0, len(texts) - MOST_TEXTS),
        )
