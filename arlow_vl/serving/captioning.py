"""Captions of many images, or answers to one question about each, batch by batch while the next images are read."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arlow_vl.data.prompts import about_image
from arlow_vl.models.arlow.checkpoint_checks import read_object
from arlow_vl.models.folder_hashes import sha256_of_weights
from arlow_vl.models.folder_writing import CHECKSUMS
from arlow_vl.models.folders import check_folder
from arlow_vl.serving.assistant import Assistant, Prompt
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.image_files import read_ahead
from arlow_vl.serving.writing import Written, write
from vision.whole_files import sha256_of_file

OnFault = Callable[[str, Exception], None]


def answer_images(
    assistant: Assistant,
    paths: Iterable[str],
    question: str | None,
    decoding: Decoding,
    *,
    batch_size: int,
    on_fault: OnFault,
) -> Iterator[list[tuple[str, Written]]]:
    """Yields batches of paths and answers, in order; `on_fault` is called for each image that cannot be read.

    At most three batches of images are in memory.

    Raises:
        ValueError: the question leaves no room for an answer.
        CheckpointError: the model's logits are not finite.
    """
    messages = about_image(question)
    batch: list[tuple[str, Prompt]] = []

    def answered() -> list[tuple[str, Written]]:
        written = write(assistant, [prompt for _, prompt in batch], decoding, batch_size=batch_size)
        return [(path, one) for (path, _), one in zip(batch, written, strict=True)]

    for path, image in read_ahead(assistant.image, paths, ahead=2 * batch_size):
        if isinstance(image, Exception):
            on_fault(path, image)
            continue
        batch.append((path, assistant.chat(messages, [image])))
        if len(batch) == batch_size:
            yield answered()
            batch.clear()
    if batch:
        yield answered()


def as_line(path: str, question: str | None, written: Written) -> dict[str, Any]:
    """Returns an answer as a line of an answer file."""
    what = {"caption": one_line(written)} if question is None else {"question": question, "answer": one_line(written)}
    return {"image": path, **what, "finish_reason": written.finish_reason, "nats": written.nats}


def one_line(written: Written) -> str:
    """Returns an answer's words, separated by single spaces."""
    return " ".join(written.text.split())


def asked_as(folder: Path, question: str | None, decoding: Decoding, precision: str | None) -> dict[str, Any]:
    """Returns all settings that decide what a model folder answers about an image.

    Raises:
        CheckpointError: the folder holds no vision-language model.
    """
    config = folder / "config.json"
    if not config.is_file() or read_object(config).get("model_type") != "arlow_vl":
        check_folder(folder, "arlow_vl")  # says what it is instead
    has_checksums = (folder / CHECKSUMS).is_file()
    weights = sha256_of_file(folder / CHECKSUMS) if has_checksums else sha256_of_weights(folder)
    asked = {"model": weights, "precision": precision, "question": question, "decoding": asdict(decoding)}
    return json.loads(json.dumps(asked))
