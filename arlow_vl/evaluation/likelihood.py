"""Log-probabilities of given answers, for multiple choice, yes-or-no questions and ranking.

An answer is encoded as in training, after its prompt by the chat template. Its end token is not counted, as in lm-eval.
A prompt is read once for all its answers: its last logits give the first token of each, and copies of its cache are
extended by the rest. Prompts with the same images share them (`image_index`), so that ten questions about one image
encode it once.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from arlow_vl.data.prompts import IGNORED, encode_messages
from arlow_vl.data.samples import Message
from arlow_vl.errors import CheckpointError
from arlow_vl.evaluation.tasks.task import Normalise

Pack = Callable[[Sequence[Any]], dict[str, Tensor]]
"""Turns distinct images into the image inputs of `forward`."""
MOST_LOGITS = 2**27
"""Largest number of logits of a forward pass that returns those of every token: 512 MiB in float32."""
NOT_FINITE = (
    "the model's logits are not finite, so its weights are damaged or it has diverged in training; "
    "copy the model folder again, or use an earlier one"
)


class Choices(NamedTuple):
    """A prompt with the answers to compare."""

    messages: Sequence[Message]
    images: Sequence[Any]
    """One for each image part, as `Pack` takes them; equal ones count as one image."""
    answers: Sequence[str]


class LogProbability(NamedTuple):
    """Log-probability and length of one answer."""

    nats: float
    """The sum over its tokens."""
    tokens: int
    bytes: int


class Candidate(NamedTuple):
    """A continuation of a prompt, of one token at least."""

    prompt: Sequence[int]
    images: Sequence[Any]
    """Images as in `Choices`."""
    ids: Sequence[int]


class Likelihood(NamedTuple):
    """Log-probability of a candidate."""

    nats: float
    is_greedy: bool
    """True: greedy search would generate it, as each of its tokens is the most likely one."""


class _Prompt(NamedTuple):
    """One row of a batch, with its candidates as (index, ids)."""

    ids: list[int]
    images: tuple[Any, ...]
    candidates: list[tuple[int, tuple[int, ...]]]


def answer_ids(tokenizer: Any, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """Returns the ids of a prompt, and those of an answer after it without the end token.

    Raises:
        ValueError: the answer has no token, or `encode_messages` does not support the chat template.
    """
    ids, labels = encode_messages(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    end = max(place for place, label in enumerate(labels) if label != IGNORED)
    start = 1 + max(place for place in range(end) if labels[place] == IGNORED)  # labels count earlier answers, too
    if start == end:
        raise ValueError(f"the answer {answer!r} has no token, so it has no probability; leave it out")
    return ids[:start], ids[start:end]


def likeliest(answers: Sequence[str], nats: Sequence[float], normalise: Normalise) -> int:
    """Returns the index of the answer with the highest normalised log-probability; the first of equals."""
    lengths = {"none": lambda answer: 1, "characters": len, "bytes": lambda answer: len(answer.encode())}
    scores = [one / lengths[normalise](answer) for answer, one in zip(answers, nats, strict=True)]
    return scores.index(max(scores))


@torch.inference_mode()
def log_probabilities(
    model: Any, tokenizer: Any, questions: Sequence[Choices], pack: Pack, *, batch_size: int = 64
) -> list[list[LogProbability]]:
    """Computes the log-probability of each answer to each question.

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
    """Computes the log-probability of each candidate after its prompt; a prompt is read once for all its candidates.

    Raises:
        CheckpointError: the model's logits are not finite.
    """
    prompts = _prompts(candidates)
    found: dict[int, Likelihood] = {}
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        inputs = pad_left([prompt.ids for prompt in batch], pad_token_id)
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        cache = DynamicCache() if any(len(ids) > 1 for prompt in batch for _, ids in prompt.candidates) else None
        images = shared_images([prompt.images for prompt in batch], pack, model.device)
        settings = {"cache": cache, "use_cache": cache is not None, "logits_to_keep": 1}
        first = finite_log_probabilities(model(**inputs, **images, **settings).logits)[:, -1]
        likeliest = first.argmax(-1).tolist()
        behind = _Behind(model, cache, inputs["attention_mask"], pad_token_id, batch_size)
        rest = behind.read([(row, ids) for row, prompt in enumerate(batch) for _, ids in prompt.candidates])
        for row, prompt in enumerate(batch):
            for number, ids in prompt.candidates:
                of_rest = rest[row, ids]
                nats = first[row, ids[0]].item() + of_rest.nats
                found[number] = Likelihood(nats, likeliest[row] == ids[0] and of_rest.is_greedy)
    return [found[number] for number in range(len(candidates))]


def _prompts(candidates: Sequence[Candidate]) -> list[_Prompt]:
    """Groups candidates by prompt; prompts are equal if their ids and images are."""
    prompts: dict[tuple, _Prompt] = {}
    for number, candidate in enumerate(candidates):
        read, images = tuple(candidate.prompt), tuple(candidate.images)
        prompt = prompts.setdefault((images, read), _Prompt(list(read), images, []))
        prompt.candidates.append((number, tuple(candidate.ids)))
    return list(prompts.values())


class _Behind(NamedTuple):
    """Reads candidates after prompts that a cache holds."""

    model: Any
    cache: DynamicCache | None
    mask: Tensor
    """(B, T) attention mask of the prompts."""
    pad_token_id: int
    batch_size: int

    def read(self, answers: Sequence[tuple[int, tuple[int, ...]]]) -> dict[tuple[int, tuple[int, ...]], Likelihood]:
        """Returns, by (row of the prompt, ids of the answer), the likelihood of all its tokens but the first.

        The last token of an answer is not read, as nothing follows it, so answers that differ there alone share a row.
        """
        found = dict.fromkeys(answers, Likelihood(0.0, True))
        sharing: dict[tuple[int, tuple[int, ...]], list[tuple[int, ...]]] = {}
        for row, ids in found:
            if len(ids) > 1:
                sharing.setdefault((row, ids[:-1]), []).append(ids)
        rows = sorted(sharing, key=lambda key: -len(key[1]))  # similar lengths together: little padding
        while rows:
            count = rows_within(self.model, len(rows[0][1]), self.batch_size)
            some, rows = rows[:count], rows[count:]
            logits = self._logits(some)
            for place, (row, read) in enumerate(some):
                of_row = finite_log_probabilities(logits[place, : len(read)])
                for ids in sharing[row, read]:
                    targets = torch.tensor(ids[1:], device=logits.device)
                    nats = of_row.gather(1, targets[:, None]).sum().item()
                    found[row, ids] = Likelihood(nats, torch.equal(of_row.argmax(-1), targets))
        return found

    def _logits(self, rows: Sequence[tuple[int, tuple[int, ...]]]) -> Tensor:
        """Returns the logits after each token of some rows, padded on the right."""
        width, device = max(len(ids) for _, ids in rows), self.mask.device
        places = torch.tensor([row for row, _ in rows], device=device)
        cache = copy.deepcopy(self.cache)
        assert cache is not None
        cache.batch_select_indices(places)
        ids = torch.tensor([[*ids, *[self.pad_token_id] * (width - len(ids))] for _, ids in rows], device=device)
        mask = torch.cat([self.mask[places], torch.ones_like(ids)], dim=1)
        return self.model(input_ids=ids, attention_mask=mask, cache=cache, use_cache=True).logits


def rows_within(model: Any, tokens: int, batch_size: int) -> int:
    """Returns how many rows of so many tokens fit into `MOST_LOGITS`: at least 1, at most `batch_size`."""
    return max(1, min(batch_size, MOST_LOGITS // (max(1, tokens) * model.config.get_text_config().vocab_size)))


def finite_log_probabilities(logits: Tensor) -> Tensor:
    """Returns the log-softmax of (..., V) logits, in float32 at least. Raises CheckpointError if one is not finite."""
    if not logits.isfinite().all():
        raise CheckpointError(NOT_FINITE)
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Returns (B, T) int64 ids and attention mask of prompts padded on the left."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def shared_images(of_rows: Sequence[Sequence[Any]], pack: Pack, device: torch.device) -> dict[str, Tensor]:
    """Returns the image inputs of a batch: each image once, and `image_index`, the image of each `<image>` token."""
    number: dict[Any, int] = {}
    index = [number.setdefault(image, len(number)) for images in of_rows for image in images]
    if not index:
        return {}
    inputs = pack(list(number)) | {"image_index": torch.tensor(index)}
    return {name: tensor.to(device) for name, tensor in inputs.items()}
