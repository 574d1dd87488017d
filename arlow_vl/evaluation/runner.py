"""Runs a trained model and its controls over the test sets; what they said becomes result files (see `results`)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arlow_vl.data.image_text import Example, caption_examples, question_examples
from arlow_vl.data.images import CachedImages
from arlow_vl.data.questions import Question
from arlow_vl.data.shards import ShardSample, read_whole
from arlow_vl.errors import DataError
from arlow_vl.evaluation.controls import most_frequent, nearest_neighbour, question_prior, shuffle_images
from arlow_vl.evaluation.generation import complete_examples
from arlow_vl.evaluation.results import CaptionRow, QuestionRow, write_predictions
from arlow_vl.progress import ProgressLine

CAPTION_TOKENS, ANSWER_TOKENS = 24, 6
IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class Evaluation:
    """A model, its tokenizer, the images as its encoder sees them, and where results go."""

    model: Any
    tokenizer: Any
    images: CachedImages
    output: Path

    def captions(
        self, task: str, test: Sequence[ShardSample], train: Sequence[ShardSample], train_features: np.ndarray
    ) -> None:
        """Writes the captions of the model and of four controls; `train_features` are the pooled ones of `train`."""
        examples = caption_examples(test)
        shuffled = shuffle_images([sample.name for sample in test], [sample.text for sample in test])
        train_captions = [sample.text for sample in train]
        blind = self._complete(examples[:1], "no image", CAPTION_TOKENS, images=None)
        systems = {
            "model": self._complete(examples, f"{task}, captions", CAPTION_TOKENS),
            "shuffled": self._complete(
                examples,
                f"{task}, captions of shuffled images",
                CAPTION_TOKENS,
                image_of=shuffled,
            ),
            "no_image": blind * len(test),
            "most_frequent": [most_frequent(train_captions)] * len(test),
            "nearest_neighbour": nearest_neighbour(train_features, train_captions, self.pooled(test)),
        }
        for system, predictions in systems.items():
            rows = (
                CaptionRow(key=sample.key, prediction=prediction, references=[sample.text])
                for sample, prediction in zip(test, predictions, strict=True)
            )
            write_predictions(self.output, task, system, rows)

    def questions(self, task: str, test: Sequence[tuple[ShardSample, Question]], train: Sequence[ShardSample]) -> None:
        """Writes the answers of the model and of four controls; `test` pairs samples with one of their questions."""
        examples = [question_examples([with_one_question(sample, entry)])[0] for sample, entry in test]
        names = [sample.name for sample, _ in test]
        training = [(entry.question, entry.answer) for sample in train for entry in sample.questions]
        systems = {
            "model": self._complete(examples, f"{task}, answers", ANSWER_TOKENS),
            "shuffled": self._complete(
                examples,
                f"{task}, answers about shuffled images",
                ANSWER_TOKENS,
                image_of=shuffle_images(names, names),
            ),
            "no_image": self._without_images(examples),
            "question_prior": question_prior(training, [entry.question for _, entry in test]),
            "always_majority": [most_frequent(answer for _, answer in training)] * len(test),
        }
        for system, predictions in systems.items():
            rows = (
                QuestionRow(
                    key=sample.key,
                    question=entry.question,
                    prediction=prediction,
                    answers=[entry.answer],
                    kind=entry.kind,
                )
                for (sample, entry), prediction in zip(test, predictions, strict=True)
            )
            write_predictions(self.output, task, system, rows)

    def _without_images(self, examples: Sequence[Example]) -> list[str]:
        """Greedy answers depend on the prompt alone then, so each wording is asked once."""
        once = {repr(example.prompt): example for example in examples}
        answers = self._complete(list(once.values()), "answers without images", ANSWER_TOKENS, images=None)
        answer_to = dict(zip(once, answers, strict=True))
        return [answer_to[repr(example.prompt)] for example in examples]

    def _complete(self, examples: Sequence[Example], title: str, max_new_tokens: int, **settings: Any) -> list[str]:
        settings = {"images": self.images, **settings}
        return complete_examples(
            self.model,
            self.tokenizer,
            examples,
            max_new_tokens=max_new_tokens,
            on_progress=ProgressLine(title, "prompts"),
            **settings,
        )

    def pooled(self, samples: Sequence[ShardSample]) -> np.ndarray:
        """(samples, features) float32: the mean of each image's patch tokens."""
        chunks = (samples[i : i + IMAGES_AT_ONCE] for i in range(0, len(samples), IMAGES_AT_ONCE))
        return np.concatenate([self.images.mean(chunk).numpy() for chunk in chunks])


def with_one_question(sample: ShardSample, entry: Question) -> ShardSample:
    """The sample with this question alone."""
    return replace(sample, questions=(entry,))


def choose_questions(samples: Iterable[ShardSample], limit: int | None) -> list[tuple[ShardSample, Question]]:
    """All questions of the samples, or `limit` of them, spread evenly over the samples' order.

    Raises:
        DataError: the samples have no question.
    """
    pairs = [(sample, entry) for sample in samples for entry in sample.questions]
    if not pairs:
        raise DataError("no test sample has a question; each .json needs a list under 'questions', see docs/data.md")
    if limit is None or limit >= len(pairs):
        return pairs
    return [pairs[i * len(pairs) // limit] for i in range(limit)]


def read_split(folder: Path, split: str) -> list[ShardSample]:
    """The samples of a split's shards, all of them: a score leaves none out.

    Raises:
        DataError: there are no such shards (names the command that fetches them), or something in them is unusable.
    """
    return read_whole(sorted(folder.glob(f"{split}-*.tar")) or [folder / f"{split}-000000.tar"])
