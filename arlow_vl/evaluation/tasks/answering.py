"""Lets the model and its controls answer the items of a task; each batch is saved before the next one begins.

Batches depend only on the items: prompts of one length share them, and a run that is resumed after a kill has the
batches of an uninterrupted one.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from arlow_vl.data.images import CachedImages
from arlow_vl.data.prompts import encode_prompt
from arlow_vl.data.samples import Message
from arlow_vl.errors import DataError
from arlow_vl.evaluation.generation import write_batch
from arlow_vl.evaluation.likelihood import Choices, answer_ids, likeliest, log_probabilities
from arlow_vl.evaluation.shuffling import shuffle_images
from arlow_vl.evaluation.tasks.items import Item
from arlow_vl.evaluation.tasks.places import NO_TRAINING
from arlow_vl.evaluation.tasks.predictions import AGAIN, MODEL, PredictionFile, PredictionRow
from arlow_vl.evaluation.tasks.priors import Prior, class_means, nearest_neighbours, shown_or_named
from arlow_vl.evaluation.tasks.task import ANSWERS, OF_FEATURES, PRIORS, Task
from arlow_vl.printing import visible

IMAGES_AT_ONCE = 256
GENERATED = (MODEL, "shuffled", "blank_image", "no_image")
Advance = Callable[[int], None]
"""Called with the number of items answered since the last call."""


class ShownPrompt(NamedTuple):
    """The prompt and images that the model is shown for an item."""

    messages: Sequence[Message]
    images: tuple[str, ...]
    """SHA-256 of each image."""


class Answer(NamedTuple):
    """An answer to an item, by the model or by a control."""

    output: str
    log_probability: float | None = None
    """Log-probability of the output, in nats; None where it is not known."""
    choices: dict[str, float] | None = None
    """Log-probability of each answer that was compared, in nats; None where the model wrote freely."""


@dataclass
class Asker:
    """A model, with the cached encoder features of the images."""

    model: Any
    tokenizer: Any
    images: CachedImages
    blank: str
    """SHA-256 of the blank image."""
    batch_size: int
    _ids: dict[str, list[int]] = field(default_factory=dict)

    def answer(self, task: Task, asked: Sequence[ShownPrompt], choices: Sequence[str]) -> "PromptBatches":
        """Plans the batches; the same question about the same images is asked once.

        Raises:
            DataError: a prompt and its answer do not fit into the model's positions.
        """
        rows: dict[tuple, list[int]] = defaultdict(list)
        for place, one in enumerate(asked):
            rows[tuple(self.ids_of(one.messages)), one.images].append(place)
        answers = [len(answer_ids(self.tokenizer, asked[0].messages, choice)[1]) for choice in choices]
        self._refuse_long(task, max((len(ids) for ids, _ in rows), default=0), max(answers, default=0))
        if task.likelihood is None:
            order = sorted(rows, key=lambda key: (len(key[0]), rows[key][0]))
        else:  # prompts with the same images together
            first: dict[tuple[str, ...], int] = {}
            for place, one in enumerate(asked):
                first.setdefault(one.images, place)
            order = sorted(rows, key=lambda key: (first[key[1]], len(key[0]), rows[key][0]))
        return PromptBatches(self, task, asked, choices, [(key, rows[key]) for key in order])

    def _refuse_long(self, task: Task, prompt: int, choice: int) -> None:
        positions = self.model.config.get_text_config().max_position_embeddings
        room = task.decoding.max_new_tokens if task.decoding else choice
        if prompt + room > positions:
            raise DataError(
                f"task {task.name}: the longest prompt has {prompt:,} tokens, its answer may have {room:,}, and the "
                f"model has {positions:,} positions; leave long questions out, or copy the task and ask for shorter "
                "answers"
            )

    def ids_of(self, messages: Sequence[Message]) -> list[int]:
        key = json.dumps(list(messages))
        if key not in self._ids:
            self._ids[key] = encode_prompt(self.tokenizer, messages)
        return self._ids[key]

    def pooled(self, items: Sequence[Item]) -> Float[np.ndarray, "items features"]:
        """Averages each item's encoder tokens, over all its images."""
        rows = []
        for start in range(0, len(items), IMAGES_AT_ONCE):
            some = items[start : start + IMAGES_AT_ONCE]
            names = list(dict.fromkeys(sha256 for item in some for sha256 in item.shown))
            means = dict(zip(names, self.images.cache.mean(names).numpy(), strict=True))
            rows += [np.mean([means[sha256] for sha256 in item.shown], axis=0) for item in some]
        return np.stack(rows)


@dataclass(frozen=True)
class PromptBatches:
    """Batches of distinct prompts, with the items that each prompt answers."""

    asker: Asker
    task: Task
    asked: Sequence[ShownPrompt]
    choices: Sequence[str]
    rows: list[tuple[tuple, list[int]]]

    def batches(self, done: Collection[int]) -> Iterator[list[tuple[int, Answer]]]:
        """Yields (position of the item, answer) pairs by batch; skips batches whose items are all done."""
        size = self.asker.batch_size
        for start in range(0, len(self.rows), size):
            batch = self.rows[start : start + size]
            if all(place in done for _, places in batch for place in places):
                continue
            answers = self._write(batch) if self.task.likelihood is None else self._compare(batch)
            yield [(place, answer) for (_, places), answer in zip(batch, answers, strict=True) for place in places]

    def _write(self, batch: Sequence[tuple[tuple, list[int]]]) -> list[Answer]:
        assert self.task.decoding is not None
        keys, decoding = [key for key, _ in batch], self.task.decoding
        asker = self.asker
        written = write_batch(
            asker.model,
            asker.tokenizer,
            [list(ids) for ids, _ in keys],
            [images for _, images in keys],
            asker.images.pack,
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.num_beams,
        )
        return [Answer(text, nats) for text, nats in written]

    def _compare(self, batch: Sequence[tuple[tuple, list[int]]]) -> list[Answer]:
        assert self.task.likelihood is not None
        asked = [self.asked[places[0]] for _, places in batch]
        questions = [Choices(one.messages, one.images, self.choices) for one in asked]
        asker, answers = self.asker, []
        found = log_probabilities(
            asker.model, asker.tokenizer, questions, asker.images.pack, batch_size=asker.batch_size
        )
        for of_question in found:
            nats = [one.nats for one in of_question]
            best = likeliest(self.choices, nats, self.task.likelihood.normalise)
            answers.append(Answer(self.choices[best], nats[best], dict(zip(self.choices, nats, strict=True))))
        return answers


def run_task(
    task: Task,
    items: Sequence[Item],
    training: Sequence[Item],
    asker: Asker,
    keep: Callable[[str], PredictionFile],
    advance: Advance,
) -> None:
    """Answers the items by the model and by every control. `training` is empty if priors come from the set itself.

    Raises:
        DataError: saved predictions have other questions, or a prompt does not fit into the model's positions.
        CheckpointError: the model's logits are not finite.
    """
    known = training or items
    prior = Prior(known, leave_own_out=not training)
    choices = choices_of(task, known)
    for system in (MODEL, *task.controls):
        kept = keep(system)
        refuse_other_questions(kept, items)
        advance(len(kept.rows))
        if system in GENERATED:
            plan = asker.answer(task, shown_to(system, items, asker.blank), choices)
            answered = plan.batches({place for place, item in enumerate(items) if item.id in kept.rows})
        elif len(kept.rows) < len(items):
            outputs = _prior_answers(system, items, known, prior, asker)
            answered = [[(place, Answer(text)) for place, text in enumerate(outputs)]]
        else:
            answered = []
        for answers in answered:
            before = len(kept.rows)
            kept.add(_prediction(items[place], answer) for place, answer in answers)
            advance(len(kept.rows) - before)
        kept.finish()


def check_controls(task: Task, items: Sequence[Item], training: Sequence[Item]) -> None:
    """Raises DataError for a set that a control could not answer, or all of whose answers are equal."""
    if not training:
        if "class_means" in task.controls:
            raise DataError(NO_TRAINING)
        if set(PRIORS) & set(task.controls):
            _refuse_without_others(items)
    if "shuffled" in task.controls:
        shuffled(items)
    choices_of(task, training or items)


def _refuse_without_others(items: Sequence[Item]) -> None:
    """Raises DataError if priors from the set itself have no answer for an item, as all items show its images."""
    prior = Prior(items, leave_own_out=True)
    for item in {shown_or_named(item): item for item in items}.values():
        if len(prior.own(item)) == len(items):
            raise DataError(
                "a prior needs answers about two images at least, and every item shows one of those of "
                f"{visible(repr(item.id))}; give a larger set or --training"
            )


def refuse_other_questions(kept: PredictionFile, items: Sequence[Item]) -> None:
    """Raises DataError for a saved prediction whose image, question or references differ from its item's."""
    for item in items:
        row = kept.rows.get(item.id)
        if row and row.asked != _prediction(item, Answer("")).asked:
            raise DataError(
                f"{visible(str(kept.path))}: item {visible(repr(item.id))} has another image, question or reference "
                f"than the data give it; {AGAIN}"
            )


def choices_of(task: Task, known: Sequence[Item]) -> list[str]:
    """Returns the answers to compare by likelihood; empty if the model writes. Raises DataError for fewer than two."""
    if task.likelihood is None:
        return []
    if task.likelihood.choices != (ANSWERS,):
        return list(task.likelihood.choices)
    choices = sorted({answer for item in known for answer in item.answers})
    if len(choices) < 2:
        raise DataError(f"task {task.name} compares all answers of the data, which have {len(choices)} only")
    return choices


def shown_to(system: str, items: Sequence[Item], blank: str) -> list[ShownPrompt]:
    """Returns the prompt and images of each item, for the model or one of its image controls."""
    if system == "no_image":
        return [ShownPrompt(item.blind, ()) for item in items]
    if system == "blank_image":
        return [ShownPrompt(item.messages, (blank,) * len(item.images)) for item in items]
    if system == "shuffled":
        return [ShownPrompt(item.messages, images) for item, images in zip(items, shuffled(items), strict=True)]
    return [ShownPrompt(item.messages, item.shown) for item in items]


def shuffled(items: Sequence[Item]) -> list[tuple[str, ...]]:
    """Returns for each item the images of another one.

    If one of those is among the item's own, it gets as many from all that are not. An item without images gets none.

    Raises:
        DataError: there is no other image for an item.
    """
    seen = [item for item in items if item.images]
    labels = [item.image if item.question else item.answers[0] for item in seen]  # equal captions are kept apart
    try:
        others = shuffle_images([(item.image, *item.image_set) for item in seen], labels)
    except ValueError as error:
        raise DataError(f"{error}; evaluate a larger set") from None
    everything = np.array(list(dict.fromkeys(sha256 for item in seen for sha256 in item.shown)))
    turn = itertools.cycle(np.random.default_rng(0).permutation(everything).tolist())
    shown: dict[tuple[str, ...], tuple[str, ...]] = {}
    for item, other in zip(seen, others, strict=True):
        if item.image_set in shown:
            continue
        images = tuple(itertools.islice(itertools.cycle(seen[other].shown), len(item.images)))
        if not set(images).isdisjoint(item.shown):
            if len(set(item.shown)) == len(everything):
                raise DataError(
                    f"item {visible(repr(item.id))} shows every image of the set, which leaves none to show instead; "
                    "evaluate a larger set"
                )
            images = tuple(itertools.islice((one for one in turn if one not in item.shown), len(item.images)))
        shown[item.image_set] = images
    return [shown[item.image_set] if item.images else () for item in items]


def _prior_answers(system: str, items: Sequence[Item], known: Sequence[Item], prior: Prior, asker: Asker) -> list[str]:
    if system in OF_FEATURES:
        of_features = {"nearest_neighbour": nearest_neighbours, "class_means": class_means}[system]
        return of_features(items, known, prior, asker.pooled)
    answer = prior.most_frequent if system == "most_frequent" else prior.to_question
    return [answer(item) for item in items]


def _prediction(item: Item, answer: Answer) -> PredictionRow:
    return PredictionRow(
        id=item.id,
        image=item.image,
        prompt=item.question,
        output=answer.output,
        references=list(item.references),
        kind=item.kind,
        log_probability=answer.log_probability,
        choices=answer.choices,
    )
