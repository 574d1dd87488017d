"""How likely a model finds given answers: multiple choice, yes or no, and ranking, by log-probability.

An answer is encoded as training encodes it, behind its prompt by the chat template; its end is not counted, as
lm-eval counts none. Rows that show the same images share them (`image_index`), so that ten questions about one image
encode it once; answers of one token to one prompt are read off one row.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arlow_vl.data.prompts import IGNORED, encode_messages
from arlow_vl.data.samples import Message
from arlow_vl.errors import CheckpointError

Pack = Callable[[Sequence[Any]], dict[str, Tensor]]
"""The image inputs of the model for some images, each given once."""


class Choices(NamedTuple):
    """A prompt with the answers that are compared."""

    messages: Sequence[Message]
    images: Sequence[Any]
    """One for each image part, as `Pack` takes them; equal ones are one image."""
    answers: Sequence[str]


class LogProbability(NamedTuple):
    """Of one answer."""

    nats: float
    """Sum over its tokens."""
    tokens: int
    bytes: int

    @property
    def per_byte(self) -> float:
        return self.nats / self.bytes


class Candidate(NamedTuple):
    """Ids that may follow a prompt."""

    prompt: Sequence[int]
    images: Sequence[Any]
    """As in `Choices`."""
    ids: Sequence[int]


class Likelihood(NamedTuple):
    """Of a candidate."""

    nats: float
    is_greedy: bool
    """Greedy search writes it: each of its tokens is the likeliest at its place."""


class _Row(NamedTuple):
    """What one row of a batch reads. `targets` are (number of candidate, first column of logits, its ids)."""

    ids: list[int]
    images: tuple[Any, ...]
    targets: list[tuple[int, int, list[int]]]


def answer_ids(tokenizer: Any, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """Ids of a prompt, and of an answer behind it without its end.

    Raises:
        ValueError: the answer has no token, or the chat template is none that `encode_messages` takes.
    """
    ids, labels = encode_messages(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    places = [place for place, label in enumerate(labels) if label != IGNORED]
    if len(places) < 2:
        raise ValueError(f"the answer {answer!r} has no token, so it has no probability; leave it out")
    return ids[: places[0]], ids[places[0] : places[-1]]


def log_probabilities(
    model: Any, tokenizer: Any, questions: Sequence[Choices], pack: Pack, *, batch_size: int = 64
) -> list[list[LogProbability]]:
    """The log-probability of each answer to each question.

    Raises:
        CheckpointError: the model's logits are not finite.
    """
    candidates = []
    for question in questions:
        for answer in question.answers:
            prompt, ids = answer_ids(tokenizer, question.messages, answer)
            candidates.append(Candidate(prompt, question.images, ids))
    found = likelihoods(model, tokenizer.pad_token_id, candidates, pack, batch_size=batch_size)
    of_candidates = iter([(len(candidate.ids), one.nats) for candidate, one in zip(candidates, found, strict=True)])
    answers = [[(answer, *next(of_candidates)) for answer in question.answers] for question in questions]
    return [[LogProbability(nats, tokens, len(answer.encode())) for answer, tokens, nats in some] for some in answers]


@torch.inference_mode()
def likelihoods(
    model: Any, pad_token_id: int, candidates: Sequence[Candidate], pack: Pack, *, batch_size: int = 64
) -> list[Likelihood]:
    """How likely each candidate is behind its prompt; those that make the model read the same share a row.

    Raises:
        CheckpointError: the model's logits are not finite.
    """
    rows = _rows(candidates)
    found: dict[int, Likelihood] = {}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        first = min(at for row in batch for _, at, _ in row.targets)
        logits = _logits(model, pad_token_id, batch, pack, first)
        for place, row in enumerate(batch):
            for number, at, ids in row.targets:
                of_ids = torch.tensor(ids, device=logits.device)
                behind = logits[place, at - first : at - first + len(ids)].log_softmax(-1)
                nats = behind.gather(1, of_ids[:, None]).sum().item()
                found[number] = Likelihood(nats, torch.equal(behind.argmax(-1), of_ids))
    return [found[number] for number in range(len(candidates))]


def _rows(candidates: Sequence[Candidate]) -> list[_Row]:
    """Rows that differ in what they read, the last token of a candidate left out, for nothing follows it."""
    rows: dict[tuple, _Row] = {}
    for number, candidate in enumerate(candidates):
        read, images = [*candidate.prompt, *candidate.ids[:-1]], tuple(candidate.images)
        row = rows.setdefault((images, tuple(read)), _Row(read, images, []))
        row.targets.append((number, len(candidate.prompt) - 1, list(candidate.ids)))
    return list(rows.values())


def _logits(model: Any, pad_token_id: int, batch: Sequence[_Row], pack: Pack, first: int) -> Tensor:
    """(B, T - first, V) from column `first` on; float32 at least."""
    width = max(len(row.ids) for row in batch)
    device = model.device
    inputs = {
        "input_ids": torch.tensor([row.ids + [pad_token_id] * (width - len(row.ids)) for row in batch], device=device),
        "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in batch]).to(device),
    }
    logits = model(**inputs, **shared_images([row.images for row in batch], pack, device), logits_to_keep=width - first)
    logits = logits.logits if logits.logits.dtype == torch.float64 else logits.logits.float()
    if not logits.isfinite().all():
        raise CheckpointError(
            "the model's logits are not finite, so its weights are damaged or it has diverged in training; "
            "copy the model folder again, or use an earlier one"
        )
    return logits


def shared_images(of_rows: Sequence[Sequence[Any]], pack: Pack, device: torch.device) -> dict[str, Tensor]:
    """The image inputs of a batch: each image once, and which of them each `<image>` stands for."""
    number: dict[Any, int] = {}
    index = [number.setdefault(image, len(number)) for images in of_rows for image in images]
    if not index:
        return {}
    inputs = pack(list(number)) | {"image_index": torch.tensor(index)}
    return {name: tensor.to(device) for name, tensor in inputs.items()}
