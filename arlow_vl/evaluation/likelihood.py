"""How likely a model finds given answers: multiple choice, yes or no, and ranking, by log-probability.

An answer is encoded as training encodes it, behind its prompt by the chat template; its end is not counted, as
lm-eval counts none. A prompt is read once for all its answers: the first token of each is read off its last logits, and
the rest behind copies of its cache. Prompts that show the same images share them (`image_index`), so that ten questions
about one image encode it once.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from arlow_vl.data.prompts import IGNORED, encode_messages
from arlow_vl.data.samples import Message
from arlow_vl.errors import CheckpointError

Pack = Callable[[Sequence[Any]], dict[str, Tensor]]
"""The image inputs of the model for some images, each given once."""
Normalise = Literal["none", "characters", "bytes"]
"""What of an answer its log-probability is divided by: lm-eval's acc, acc_norm and acc_bytes."""
MOST_LOGITS = 2**27
"""Of one pass of the model where every token has its logits: 512 MiB in float32."""
NOT_FINITE = (
    "the model's logits are not finite, so its weights are damaged or it has diverged in training; "
    "copy the model folder again, or use an earlier one"
)


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


class Candidate(NamedTuple):
    """Ids that may follow a prompt, one at least."""

    prompt: Sequence[int]
    images: Sequence[Any]
    """As in `Choices`."""
    ids: Sequence[int]


class Likelihood(NamedTuple):
    """Of a candidate."""

    nats: float
    is_greedy: bool
    """Greedy search writes it: each of its tokens is the likeliest at its place."""


class _Prompt(NamedTuple):
    """What one row of a batch reads, with the (number of the candidate, its ids) behind it."""

    ids: list[int]
    images: tuple[Any, ...]
    candidates: list[tuple[int, tuple[int, ...]]]


def answer_ids(tokenizer: Any, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """Ids of a prompt, and of an answer behind it without its end.

    Raises:
        ValueError: the answer has no token, or the chat template is none that `encode_messages` takes.
    """
    ids, labels = encode_messages(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    end = max(place for place, label in enumerate(labels) if label != IGNORED)
    start = 1 + max(place for place in range(end) if labels[place] == IGNORED)  # labels count earlier answers, too
    if start == end:
        raise ValueError(f"the answer {answer!r} has no token, so it has no probability; leave it out")
    return ids[:start], ids[start:end]


def likeliest(answers: Sequence[str], nats: Sequence[float], normalise: Normalise) -> int:
    """Place of the answer with the highest log-probability, normalised; the first of equals."""
    lengths = {"none": lambda answer: 1, "characters": len, "bytes": lambda answer: len(answer.encode())}
    scores = [one / lengths[normalise](answer) for answer, one in zip(answers, nats, strict=True)]
    return scores.index(max(scores))


@torch.inference_mode()
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
    """How likely each candidate is behind its prompt; a prompt is read once for all its candidates.

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
    """Prompts that differ in what they read or show."""
    prompts: dict[tuple, _Prompt] = {}
    for number, candidate in enumerate(candidates):
        read, images = tuple(candidate.prompt), tuple(candidate.images)
        prompt = prompts.setdefault((images, read), _Prompt(list(read), images, []))
        prompt.candidates.append((number, tuple(candidate.ids)))
    return list(prompts.values())


class _Behind(NamedTuple):
    """What stands behind prompts that a cache holds."""

    model: Any
    cache: DynamicCache | None
    mask: Tensor
    """(B, T) of the prompts."""
    pad_token_id: int
    batch_size: int

    def read(self, answers: Sequence[tuple[int, tuple[int, ...]]]) -> dict[tuple[int, tuple[int, ...]], Likelihood]:
        """By row of the prompts and ids of an answer: the likelihood of all its tokens but the first.

        The last token of an answer is not read, for nothing follows it, so answers that differ there share a row.
        """
        found = dict.fromkeys(answers, Likelihood(0.0, True))
        sharing: dict[tuple[int, tuple[int, ...]], list[tuple[int, ...]]] = {}
        for row, ids in found:
            if len(ids) > 1:
                sharing.setdefault((row, ids[:-1]), []).append(ids)
        rows = sorted(sharing, key=lambda key: -len(key[1]))  # little padding
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
        """Behind each token of some rows, padded on their right."""
        width, device = max(len(ids) for _, ids in rows), self.mask.device
        places = torch.tensor([row for row, _ in rows], device=device)
        cache = copy.deepcopy(self.cache)
        assert cache is not None
        cache.batch_select_indices(places)
        ids = torch.tensor([[*ids, *[self.pad_token_id] * (width - len(ids))] for _, ids in rows], device=device)
        mask = torch.cat([self.mask[places], torch.ones_like(ids)], dim=1)
        return self.model(input_ids=ids, attention_mask=mask, cache=cache, use_cache=True).logits


def rows_within(model: Any, tokens: int, batch_size: int) -> int:
    """Rows of so many tokens, at most `batch_size`, whose logits are not more than `MOST_LOGITS`; one at least."""
    return max(1, min(batch_size, MOST_LOGITS // (max(1, tokens) * model.config.get_text_config().vocab_size)))


def finite_log_probabilities(logits: Tensor) -> Tensor:
    """Of (..., V) logits, float32 at least. Raises CheckpointError for logits that say nothing."""
    if not logits.isfinite().all():
        raise CheckpointError(NOT_FINITE)
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """(B, T) int64 ids and attention mask, the prompts' ends in the last column."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def shared_images(of_rows: Sequence[Sequence[Any]], pack: Pack, device: torch.device) -> dict[str, Tensor]:
    """The image inputs of a batch: each image once, and which of them each `<image>` stands for."""
    number: dict[Any, int] = {}
    index = [number.setdefault(image, len(number)) for images in of_rows for image in images]
    if not index:
        return {}
    inputs = pack(list(number)) | {"image_index": torch.tensor(index)}
    return {name: tensor.to(device) for name, tensor in inputs.items()}
