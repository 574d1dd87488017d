"""Log-probabilities of whole documents, read in overlapping windows.

    stride 2, window 4, document a b c d e f g
    <bos> a b c            a, b, c count
            b c d e        d, e
                d e f g    f, g

Each token is predicted once, from at least `window - stride` tokens before it if there are so many. Documents have the
formats of docs/data.md; bits per byte are relative to their UTF-8 text.
"""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from arlow_vl.data.file_names import names_of
from arlow_vl.data.prompts import document_ends, plain_ids
from arlow_vl.data.remote_cache import naming_addresses
from arlow_vl.data.text_files import parts_of, shown_source, text_files
from arlow_vl.data.text_readers import DocumentReader
from arlow_vl.errors import DataError
from arlow_vl.evaluation.likelihood import finite_log_probabilities, rows_within
from arlow_vl.evaluation.metrics.perplexity import windows
from arlow_vl.evaluation.tasks.predictions import MODEL, PredictionFile, PredictionRow
from arlow_vl.evaluation.tasks.task import Perplexity, Task
from arlow_vl.printing import visible


class Document(NamedTuple):
    """A document of the source, tokenised."""

    id: str
    """File name and number in the file, from 1; files of one name also have the folders that distinguish them."""
    text: str
    ids: list[int]


class Window(NamedTuple):
    """Tokens that are read in one row."""

    ids: list[int]
    counted: int
    """Number of tokens at its end that count."""


def read_documents(source: str, tokenizer: Any) -> list[Document]:
    """Reads all documents of a source. Raises DataError if there is none, or if one cannot be read."""
    documents = [Document(name, text, plain_ids(tokenizer, [text])[0]) for name, text in _texts(source)]
    if not documents:
        raise DataError(f"{visible(shown_source(source))}: no document; name text files as docs/data.md has them")
    return documents


def hash_documents(source: str) -> str:
    """Returns the SHA-256 of the texts in their order, whatever their file names."""
    digest = hashlib.sha256()
    for _, text in _texts(source):
        digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    return digest.hexdigest()


def _texts(source: str) -> Iterator[tuple[str, str]]:
    with contextlib.closing(text_files([source])) as files, naming_addresses(files.held):
        for path, name in names_of(files).items():
            number = 0
            for part in parts_of(path):
                reader = DocumentReader(part)
                for text in reader:
                    number += 1
                    yield f"{name}:{number}", text
                reader.tally.report(path, 0.0)


def document_windows(ids: Sequence[int], bos: int, settings: Perplexity) -> Iterator[Window]:
    """Yields the windows of a document that starts with bos."""
    read = [bos, *ids]
    for part in windows(len(read), window=settings.window, stride=settings.stride):
        yield Window(read[part.begin : part.end], part.end - part.score_from)


def check_window(task: Task, model: Any) -> None:
    """Raises DataError if the task's windows are longer than the model's positions."""
    positions = model.config.get_text_config().max_position_embeddings
    if task.perplexity and task.perplexity.window > positions:
        raise DataError(
            f"task {task.name} reads windows of {task.perplexity.window:,} tokens and the model has {positions:,} "
            "positions; copy the task and set perplexity.window"
        )


@torch.inference_mode()
def log_probability(model: Any, pad: int, some: Sequence[Window]) -> list[float]:
    """Returns the nats of the counted tokens of each window. Raises CheckpointError for logits that are not finite."""
    width = max(len(window.ids) for window in some)
    ids = torch.tensor([window.ids + [pad] * (width - len(window.ids)) for window in some], device=model.device)
    mask = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in some], device=model.device)
    first = min(len(window.ids) - window.counted for window in some) - 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=width - first).logits
    nats = []
    for row, window in enumerate(some):
        end = len(window.ids)
        start = end - window.counted
        of_row = finite_log_probabilities(logits[row, start - 1 - first : end - 1 - first])
        chosen = of_row.gather(1, ids[row, start:end, None]).cpu()  # not every device has float64
        nats.append(chosen.double().sum().item())
    return nats


def document_nats(model: Any, tokenizer: Any, document: Document, settings: Perplexity, batch_size: int) -> float:
    """Computes the log-probability of a document in nats. Raises CheckpointError for logits that are not finite."""
    of_document = list(document_windows(document.ids, document_ends(tokenizer)[0], settings))
    count = rows_within(model, settings.window, batch_size)
    return sum(
        sum(log_probability(model, tokenizer.pad_token_id, of_document[start : start + count]))
        for start in range(0, len(of_document), count)
    )


def bits_per_byte(
    model: Any, tokenizer: Any, documents: Sequence[Document], progress: Callable[[int, int], None]
) -> float:
    """Computes the bits per byte of all documents together, in windows that overlap by half.

    `progress` is called with the number of documents read so far and the total.
    """
    window = min(512, model.config.get_text_config().max_position_embeddings)
    settings = Perplexity(window=window, stride=window // 2)
    nats = []
    for number, document in enumerate(documents, start=1):
        nats.append(document_nats(model, tokenizer, document, settings, 8))
        progress(number, len(documents))
    return -math.fsum(nats) / math.log(2) / sum(len(document.text.encode()) for document in documents)


def run_text_task(
    task: Task,
    documents: Sequence[Document],
    model: Any,
    tokenizer: Any,
    batch_size: int,
    keep: Callable[[str], PredictionFile],
    advance: Callable[[int], None],
) -> None:
    """Saves the model's log-probability of each document, and that of a unigram model of all the documents."""
    assert task.perplexity is not None
    kept = keep(MODEL)
    advance(len(kept.rows))
    waiting = [document for document in documents if document.id not in kept.rows]
    for document in waiting:
        nats = document_nats(model, tokenizer, document, task.perplexity, batch_size)
        kept.add([_prediction(document, nats)])
        advance(1)
    kept.finish()
    counts = Counter(token for document in documents for token in document.ids)
    total, unigram = counts.total(), keep("unigram")
    advance(len(unigram.rows))
    rows = [_prediction(one, math.fsum(math.log(counts[i] / total) for i in one.ids)) for one in documents]
    before = len(unigram.rows)
    unigram.add(rows)
    advance(len(unigram.rows) - before)
    unigram.finish()


def _prediction(document: Document, nats: float) -> PredictionRow:
    return PredictionRow(
        id=document.id,
        image=document.id,
        prompt="",
        output="",
        references=[],
        log_probability=nats,
        tokens=len(document.ids),
        bytes=len(document.text.encode()),
    )
