"""Arlow in lmms-eval: a chat model and a simple one, which lmms-eval finds by its entry point `lmms_eval.models`.

    lmms-eval eval --model arlow_vl --model_args pretrained=FOLDER --tasks TASK --batch_size 16

Prompts are those of training, by the chat template of the model folder (docs/prompts.md). Of lmms-eval's two kinds the
chat model is taken where a task has messages; `--force_simple` takes the other one.
"""

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance  # pyrefly: ignore[missing-import]
from lmms_eval.api.model import lmms  # pyrefly: ignore[missing-import]
from lmms_eval.models.registry_v2 import ModelManifest  # pyrefly: ignore[missing-import]
from lmms_eval.protocol import ChatMessages  # pyrefly: ignore[missing-import]

from arlow_vl.data.prompts import encode_prompt
from arlow_vl.data.samples import Message
from arlow_vl.evaluation.harnesses.requests import (
    Converted,
    HarnessModel,
    Request,
    answers,
    begin_turn,
    decoding_of,
    interleaved,
    log_probabilities,
)
from arlow_vl.evaluation.likelihood import answer_ids
from arlow_vl.serving.decoding import Decoding

MAX_NEW_TOKENS = 1024
"""lmms-eval's usual default, for tasks that set none."""


def manifest() -> ModelManifest:
    """Returns the classes of the model to lmms-eval, which calls this entry point."""
    return ModelManifest(
        model_id="arlow_vl",
        simple_class_path=f"{__name__}.{ArlowSimple.__name__}",
        chat_class_path=f"{__name__}.{ArlowChat.__name__}",
    )


class ArlowSimple(HarnessModel, lmms):
    """Takes a context and images; `<image>` in the context stands for each, else they come first.

    Options as in `HarnessModel`.
    """

    is_simple = True

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generates answers, up to the first of the task's stop texts."""
        return answers(self.assistant, Converted(requests, self._asked), batch_size=self.batch_size)

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Returns minus the log-probability of each answer in nats, and whether greedy search would generate it.

        lmms-eval 0.7.3 chooses the answer with the smallest value, as its own models return a loss. It turns a plain
        pair into a string, which breaks its multiple-choice scores with any model; `GenerationResult` keeps it.
        """
        candidates = Converted(requests, self._candidate)
        found = log_probabilities(self.assistant, candidates, batch_size=self.batch_size)
        return [GenerationResult(text=(-one.nats, one.is_greedy)) for one in found]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raises ValueError: multi-round tasks, whose next question depends on the answer, are not supported."""
        raise ValueError("the task asks in several rounds, and Arlow's model for lmms-eval in one; leave the task out")

    def _asked(self, request: Instance) -> tuple[Request, Decoding]:
        context, settings, doc_to_visual, *place = request.args
        messages, images = _with_images(context, doc_to_visual(self._doc(*place)), _name(*place))
        return self._request(messages, images, _name(*place)), decoding_of(settings, max_new_tokens=MAX_NEW_TOKENS)

    def _candidate(self, request: Instance) -> tuple[Request, list[int]]:
        context, continuation, doc_to_visual, *place = request.args
        doc, name = self._doc(*place), _name(*place)
        answer = continuation(doc) if callable(continuation) else continuation
        messages, images = _with_images(context, doc_to_visual(doc), name)
        prompt, ids = answer_ids(self.assistant.tokenizer, messages, begin_turn(answer))
        return Request(prompt, images, name), ids

    def _request(self, messages: Sequence[Message], images: Sequence[Any], name: str) -> Request:
        return Request(encode_prompt(self.assistant.tokenizer, messages), images, name)

    def _doc(self, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]


class ArlowChat(ArlowSimple):
    """Takes messages of text and images."""

    is_simple = False

    def _asked(self, request: Instance) -> tuple[Request, Decoding]:
        _, doc_to_messages, settings, *place = request.args
        messages, images = _plain_messages(doc_to_messages(self._doc(*place)), _name(*place))
        return self._request(messages, images, _name(*place)), decoding_of(settings, max_new_tokens=MAX_NEW_TOKENS)


def _with_images(context: str, images: Sequence[Any] | None, name: str) -> tuple[list[Message], list[Any]]:
    images = list(images or ())
    return [{"role": "user", "content": interleaved(context, len(images), name=name)}], images


def _plain_messages(messages: Any, name: str) -> tuple[list[Message], list[Any]]:
    """Converts lmms-eval's messages, and extracts their images. Raises ValueError for video and audio."""
    chat = ChatMessages(messages=messages)
    images, videos, audios = chat.extract_media()
    if videos or audios:
        raise ValueError(f"{name}: the task has video or audio, and Arlow reads text and images; leave the task out")
    contents = [
        [{"type": "text", "text": part.text} if part.type == "text" else {"type": "image"} for part in message.content]
        for message in chat.messages
    ]
    roles = [message.role for message in chat.messages]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)], images


def _name(doc_id: int, task: str, split: str) -> str:
    return f"{task} {split} {doc_id}"
