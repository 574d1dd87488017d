"""Answers of an open model: to many prompts in batches, to one token by token, or the likeliest of given ones."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import groupby
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from arlow_vl.data.prompts import plain_ids
from arlow_vl.data.samples import Message
from arlow_vl.evaluation.generation import Continuation, Progress, continue_batch
from arlow_vl.evaluation.likelihood import Choices, log_probabilities
from arlow_vl.serving.assistant import Assistant, PreparedImage, Prompt
from arlow_vl.serving.decoding import Decoding, check_choices
from arlow_vl.serving.drawing import Draw
from arlow_vl.serving.text_stream import TextStream


@dataclass(frozen=True)
class Written:
    """A generated answer."""

    text: str
    """The text as generated, white space included."""
    ids: tuple[int, ...]
    """Its tokens, without the end token and with those of a stop text."""
    finish_reason: Literal["stop", "length"]
    """"stop": ended by an end token or a stop text; "length": cut at `max_new_tokens` or the model's length."""
    nats: float | None
    """Its log-probability under the model, including the end token, before penalties, temperature and the like; None
    for beam search."""


def write(
    assistant: Assistant,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    batch_size: int = 32,
    dice: torch.Generator | None = None,
    on_progress: Progress | None = None,
) -> list[Written]:
    """Answers each prompt: those of similar length form a batch, in which a shared image is encoded once.

    No answer depends on its batch, except for the order in which floats are added and under the rotary scalings dynamic
    and longrope, which follow the longest row. With a seed, sampling does not either: each prompt has its own random
    numbers from the seed on. Without one they are those of `dice`, or new ones each time.

    Raises:
        CheckpointError: the model's logits are not finite.
    """
    rooms = [min(decoding.max_new_tokens, assistant.max_length - len(prompt.ids)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda place: (rooms[place], len(prompts[place].ids)))
    found: dict[int, Written] = {}
    for room, places in groupby(order, key=rooms.__getitem__):
        places = list(places)
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            written = _write_batch(assistant, [prompts[place] for place in batch], decoding, room, dice)
            found |= zip(batch, written, strict=True)
            if on_progress:
                on_progress(len(found), len(prompts))
    return [found[place] for place in range(len(prompts))]


def stream(assistant: Assistant, prompt: Prompt, decoding: Decoding) -> Generator[str, None, None]:
    """Yields pieces of an answer as its tokens come; joined they are `write`'s text. Beam search yields one.

    Closing the iterator ends the generation.

    Raises:
        CheckpointError: the model's logits are not finite.
    """
    if decoding.num_beams > 1:
        yield write(assistant, [prompt], decoding)[0].text
        return
    tokens: SimpleQueue[int | Exception | None] = SimpleQueue()
    is_over = Event()
    settings = {"streamer": _Tokens(tokens), "stopping_criteria": [_Over(is_over)]}

    def fill() -> None:
        try:
            room = min(decoding.max_new_tokens, assistant.max_length - len(prompt.ids))
            _continue(assistant, [prompt], decoding, room, settings)
            tokens.put(None)
        except Exception as error:  # raised where the tokens are awaited
            tokens.put(error)

    writer = Thread(target=fill, daemon=True)
    writer.start()
    pieces = TextStream(assistant.tokenizer, decoding.stop, prompt=prompt.ids)
    try:
        while not pieces.is_stopped and (token := tokens.get()) is not None:
            if isinstance(token, Exception):
                raise token
            if token not in assistant.stop_ids and (piece := pieces.push(token)):
                yield piece
        if rest := pieces.rest():
            yield rest
    finally:
        is_over.set()
        writer.join()


def choose(
    assistant: Assistant, messages: Sequence[Message], images: Sequence[PreparedImage], answers: Sequence[str]
) -> list[float]:
    """Returns the probability of each answer to a conversation among the given ones; they sum to 1.

    Raises:
        ValueError: there are fewer than two answers, two are the same, one is empty, or they do not fit the model.
        CheckpointError: the model's logits are not finite.
    """
    check_choices(answers)
    prompt = assistant.chat(messages, images)
    longest = max(map(len, plain_ids(assistant.tokenizer, list(answers))))
    if len(prompt.ids) + longest > assistant.max_length:
        raise ValueError(
            f"the prompt has {len(prompt.ids):,} tokens and the longest choice {longest:,}, the model reads "
            f"{assistant.max_length:,} together; shorten them"
        )
    question = Choices(messages, images, answers)
    (found,) = log_probabilities(assistant.model, assistant.tokenizer, [question], assistant.pack)
    return torch.tensor([answer.nats for answer in found], dtype=torch.float64).softmax(0).tolist()


def _write_batch(
    assistant: Assistant, prompts: Sequence[Prompt], decoding: Decoding, room: int, dice: torch.Generator | None
) -> list[Written]:
    settings = {}
    if decoding.stop:
        settings["stopping_criteria"] = [_StopTexts(assistant.tokenizer, prompts, decoding)]
    continued = _continue(assistant, prompts, decoding, room, settings, dice)
    return [_written(assistant.tokenizer, *pair, decoding.stop) for pair in zip(prompts, continued, strict=True)]


def _continue(
    assistant: Assistant,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    room: int,
    settings: dict[str, Any],
    dice: torch.Generator | None = None,
) -> list[Continuation]:
    if decoding.temperature > 0:
        settings = {**settings, "logits_processor": [Draw(decoding, dice)]}
    return continue_batch(
        assistant.model,
        assistant.tokenizer,
        [prompt.ids for prompt in prompts],
        [prompt.images for prompt in prompts],
        assistant.pack,
        settings=decoding.search_settings()
        | {"max_new_tokens": room, "eos_token_id": sorted(assistant.stop_ids)}
        | settings,
    )


def _written(tokenizer: Any, prompt: Prompt, continued: Continuation, stop: Sequence[str]) -> Written:
    """Returns the answer of a continuation, which ends with the first token that completes a stop text."""
    pieces = TextStream(tokenizer, stop, prompt=prompt.ids)
    text, count = "", len(continued.ids)
    for place, token in enumerate(continued.ids):
        text += pieces.push(token)
        if pieces.is_stopped:
            count = place + 1
            break
    text += pieces.rest()
    has_ended = continued.has_ended or pieces.is_stopped
    nats = None
    if continued.nats is not None:
        nats = sum(continued.nats[:count] if pieces.is_stopped else continued.nats)
    return Written(text, tuple(continued.ids[:count]), "stop" if has_ended else "length", nats)


class _StopTexts(StoppingCriteria):
    """Ends each row at a stop text. Beam search reorders its rows, so these are decoded anew in each step."""

    def __init__(self, tokenizer: Any, prompts: Sequence[Prompt], decoding: Decoding) -> None:
        self.begin = [
            lambda prompt=prompt: TextStream(tokenizer, decoding.stop, prompt=prompt.ids) for prompt in prompts
        ]
        self.rows = [begin() for begin in self.begin] if decoding.num_beams == 1 else None
        self.width = max(len(prompt.ids) for prompt in prompts)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if self.rows is not None:
            for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
                row.push(token)
            return torch.tensor([row.is_stopped for row in self.rows], device=input_ids.device)
        stopped, count = [], len(input_ids)
        for number, ids in enumerate(input_ids[:, self.width :].tolist()):
            row = self.begin[number * len(self.begin) // count]()
            for token in ids:
                row.push(token)
            stopped.append(row.is_stopped)
        return torch.tensor(stopped, device=input_ids.device)


class _Over(StoppingCriteria):
    """Ends all rows once nobody waits for them."""

    def __init__(self, is_over: Event) -> None:
        self.is_over = is_over

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self.is_over.is_set(), device=input_ids.device)


class _Tokens(BaseStreamer):
    """Puts each token of one row into a queue."""

    def __init__(self, tokens: SimpleQueue) -> None:
        self.tokens = tokens
        self.is_prompt = True

    def put(self, value: Tensor) -> None:
        if not self.is_prompt:
            for token in value.flatten().tolist():
                self.tokens.put(token)
        self.is_prompt = False

    def end(self) -> None:
        pass
