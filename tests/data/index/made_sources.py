"""Sources of samples that are built in a test, with the images that they name."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from arlow_vl.data.index.writing import write_index
from arlow_vl.data.samples import ImageRef, Sample, Text
from arlow_vl.data.shard_samples import BadSample


class Tally:
    def __init__(self) -> None:
        self.bad: list[BadSample] = []
        self.bad_texts: list[BadSample] = []
        self.faults: list = []


class MadeSource:
    """Given samples, as a reader of some format would give them."""

    format = "made"

    def __init__(self, samples: Sequence[Sample], files: Sequence[Path] = ()) -> None:
        self.samples = samples
        self.files = files
        self.tally = Tally()

    def iterate(self) -> Iterator[Sample]:
        return iter(self.samples)

    def close(self) -> None:
        pass


def about(text: str, images: int = 1) -> tuple[dict, ...]:
    places = [{"type": "image"}] * images
    return {"role": "user", "content": places}, {"role": "assistant", "content": text}


def caption(text: str, images: int = 1) -> Text:
    return Text("caption", about(text, images))


def question(text: str, answer: str, *references: str, kind: str = "") -> Text:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    messages = {"role": "user", "content": content}, {"role": "assistant", "content": answer}
    return Text("question", messages, references=references, kind=kind)


def laid(folder: Path, *contents: bytes, name: str = "images.bin") -> list[ImageRef]:
    """Images one behind the other in a file, as in a tar."""
    path, offset, refs = folder / name, 0, []
    path.write_bytes(b"".join(contents))
    for content in contents:
        refs.append(ImageRef(str(path), offset, len(content)))
        offset += len(content)
    return refs


def hashed(image: ImageRef, content: bytes) -> ImageRef:
    return image._replace(sha256=hashlib.sha256(content).digest())


def indexed(folder: Path, source, *, into: str = ".arlow-index/made", name: str = "made", threads: int = 1):
    return write_index(folder / into, source, name=name, base=folder, threads=threads)
