"""Karpathy's splits of COCO, Flickr30k and Flickr8k: one JSON with "images", each with its sentences and its split.

    {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "cocoid": 391895, "imgid": 0,
                 "split": "test", "sentences": [{"raw": "A man with a red helmet ..."}, ...]}, ...], "dataset": "coco"}

All sentences of an image are texts of one sample, whose key is its name. "karpathy" reads every split, "karpathy_test"
and its like one; training is what the data call train and restval.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.images import ImageRoot
from arlow_vl.data.formats.json_files import entries_under, load_json
from arlow_vl.data.formats.messages import clean_string
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.samples import Sample, Text, caption_text
from arlow_vl.data.text import Unusable

SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def read(
    files: list[Path], images: ImageRoot, tally: Tally, *, splits: tuple[str, ...] | None = None
) -> Iterator[Sample]:
    """Yields a sample for each image of the splits (None: all splits), in the order of the file."""
    seen: set[str] = set()
    for path, called in names_of(files).items():
        for number, entry in enumerate(entries_under(path, load_json(path), "images"), start=1):
            name = f"{called}: image number {number:,}"
            try:
                if not isinstance(entry, dict):
                    raise Unusable("entry_not_an_object", f": {type(entry).__name__}")
                if splits is not None and entry.get("split") not in splits:
                    continue
                key = _name(entry)
                if key in seen:
                    raise Unusable("duplicate_id", f": {key[:80]} comes twice")
                image, texts = images.find(key), _captions(name, entry, tally)
                if not texts:
                    raise Unusable("missing_text", ": no usable sentence")
            except Unusable as fault:
                tally.leave_out(name, fault)
                continue
            seen.add(key)
            yield tally.use(Sample(key, (image,), tuple(texts), {"split": str(entry.get("split"))[:100]}))


def _name(entry: dict[str, Any]) -> str:
    """Returns the image's path as in the data; Flickr's have no folder."""
    folder, name = entry.get("filepath", ""), entry.get("filename")
    if not isinstance(name, str) or not isinstance(folder, str):
        raise Unusable("missing_image" if name is None else "image_not_a_path", ": filepath and filename must be texts")
    return f"{folder}/{name}" if folder else name


def _captions(where: str, entry: dict[str, Any], tally: Tally) -> list[Text]:
    captions, sentences = [], entry.get("sentences")
    if not isinstance(sentences, list):
        raise Unusable("missing_text", ": no list of sentences")
    for number, sentence in enumerate(sentences, start=1):
        try:
            if not isinstance(sentence, dict):
                raise Unusable("entry_not_an_object", f": {type(sentence).__name__}")
            captions.append(caption_text(clean_string(sentence.get("raw"), "caption")))
        except Unusable as fault:
            tally.leave_out_text(f"{where}, sentence {number}", fault, "caption")
    return captions


READERS: dict[str, Callable[[list[Path], ImageRoot, Tally], Iterator[Sample]]] = {
    "karpathy": read,
    **{f"karpathy_{name}": partial(read, splits=splits) for name, splits in SPLITS.items()},
}
"""Readers by the name of the format."""
