"""Arlow in lm-eval: text as with its `hf` model, and images also with log-probabilities, unlike `hf-multimodal`.

lm-eval finds models by name once their module has been imported, and has no entry points, so it is started with

    python -m arlow_vl.evaluation.harnesses lm-eval run --model arlow_vl --model_args pretrained=FOLDER --tasks TASK

As usual in lm-eval, a task's text has `<image>` in place of each image. With `--apply_chat_template` prompts are those
of training (docs/prompts.md), else plain documents.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import lm_eval.models  # pyrefly: ignore[missing-import] # noqa: F401 - registers its own, which it omits once another is
from lm_eval import utils  # pyrefly: ignore[missing-import]
from lm_eval.api.instance import Instance  # pyrefly: ignore[missing-import]
from lm_eval.api.model import LM  # pyrefly: ignore[missing-import]
from lm_eval.api.registry import register_model  # pyrefly: ignore[missing-import]
from lm_eval.models.utils import normalize_gen_kwargs  # pyrefly: ignore[missing-import]

from arlow_vl.data.prompts import document_ends, encode_rendered, plain_ids
from arlow_vl.evaluation.harnesses.requests import (
    Converted,
    HarnessModel,
    Request,
    answers,
    begin_turn,
    decoding_of,
    document_ids,
    interleaved,
    log_probabilities,
)
from arlow_vl.models.arlow.chat_arlow import (
    IMAGE_TOKEN,
    ChatTokenizer,
    beginnings_of,
    control_tokens,
    drop_quotes,
    quoted,
    render_chat,
)
from arlow_vl.serving.decoding import Decoding

CHAT = "\ufdd2"
"""Marks a rendered chat, whose control tokens count as such; a Unicode noncharacter, which does not occur in text."""
MAX_GEN_TOKS = 256
"""lm-eval's default, for tasks that set none."""


@register_model("arlow_vl")
class ArlowLM(HarnessModel, LM):
    """A text model or a vision-language model of this package; options as in `HarnessModel`."""

    def __init__(self, pretrained: str, **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.tokenizer = self.assistant.tokenizer
        if not isinstance(self.tokenizer, ChatTokenizer):
            drop_quotes(self.tokenizer.backend_tokenizer)
        self._pretrained = str(pretrained)
        self.MULTIMODAL = self.assistant.sees_images  # lm-eval's name for it

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Returns the log-probability of each continuation in nats, and whether greedy search would generate it."""
        found = log_probabilities(self.assistant, Converted(requests, self._pair), batch_size=self.batch_size)
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, tuple(one))
        return [tuple(one) for one in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Returns the log-probability of whole texts after bos, in nats, read in lm-eval's disjoint windows."""
        owners, windows = [], []
        for number, request in enumerate(requests):
            for before, ids in self._windows(request.args[0]):
                owners.append(number)
                windows.append((Request(before, name=_name(request)), ids))
        found = log_probabilities(self.assistant, windows, batch_size=self.batch_size)
        nats = [0.0] * len(requests)
        for owner, one in zip(owners, found, strict=True):
            nats[owner] += one.nats
        return nats

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generates texts, up to the first of the task's stop texts."""
        texts = answers(self.assistant, Converted(requests, self._asked), batch_size=self.batch_size)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders a conversation as in training; without a generation prompt the last answer is left open."""
        messages: list[dict[str, Any]] = []
        for message in chat_history:
            images = message["content"].count(IMAGE_TOKEN) if self.MULTIMODAL else 0
            messages.append({**message, "content": interleaved(message["content"], images, name="a message")})
        begun = ""
        if not add_generation_prompt and chat_history[-1]["role"] == "assistant":
            begun = self._quoted(chat_history[-1]["content"])
            messages.pop()
        return CHAT + render_chat(self.tokenizer, messages, add_generation_prompt=True) + begun

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the template that lm-eval records in its results."""
        return self.tokenizer.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in lm-eval's cache of prompts."""
        return self._pretrained.replace("/", "__")

    def _pair(self, request: Instance) -> tuple[Request, list[int]]:
        context, continuation, images = _parts(request)
        before, ids = self._ids(context, continuation, len(images), _name(request))
        return Request(before, images, _name(request)), ids

    def _asked(self, request: Instance) -> tuple[Request, Decoding]:
        context, settings, images = _parts(request)
        ids = self._ids(context, "", len(images), _name(request))[0]
        given = {name: value for name, value in settings.items() if value is not None}
        settings = normalize_gen_kwargs(given, MAX_GEN_TOKS)  # which of several names of the length counts
        return Request(ids, images, _name(request)), decoding_of(settings, max_new_tokens=MAX_GEN_TOKS)

    def _ids(self, context: str, continuation: str, images: int, name: str) -> tuple[list[int], list[int]]:
        """Returns the ids of the context, and those of the continuation as encoded after it.

        As in lm-eval, trailing space of the context moves to the continuation, but the answer in a chat begins without.
        """
        if context.startswith(CHAT):
            context = context.removeprefix(CHAT)
            if not images:
                context = context.replace(IMAGE_TOKEN, self._quoted(IMAGE_TOKEN))
            body = context.rstrip(" ") if continuation else context
            continuation = context[len(body) :] + continuation
            before = encode_rendered(self.tokenizer, body)
            both = encode_rendered(
                self.tokenizer,
                body + self._quoted(begin_turn(continuation) if body[-1:].isspace() else continuation),
            )
        else:
            body = context.rstrip() if continuation else context
            continuation = context[len(body) :] + continuation
            parts = interleaved(body, images, name=name)
            before = document_ids(self.assistant, parts)
            last = parts.pop()["text"] if parts[-1]["type"] == "text" else ""
            both = document_ids(self.assistant, [*parts, {"type": "text", "text": last + continuation}])
        return before or [self._beginning], both[len(before) :]

    def _quoted(self, text: str) -> str:
        return quoted(text, beginnings_of(control_tokens(self.tokenizer)))

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        ids = plain_ids(self.tokenizer, [text])[0]
        rolling = utils.get_rolling_token_windows(
            token_list=ids, prefix_token=self._beginning, max_seq_len=self.assistant.max_length, context_len=1
        )
        return map(utils.make_disjoint_window, rolling)

    @property
    def _beginning(self) -> int:
        return document_ends(self.tokenizer)[0]


def _parts(request: Instance) -> tuple[str, Any, Sequence[Any]]:
    """Returns the context, the continuation or generation arguments, and the images of a request."""
    context, other, *media = request.args
    if media and media[0].get("audio"):
        raise ValueError(f"{_name(request)}: the task has audio, and Arlow reads text and images; leave the task out")
    return context, other, (media[0].get("visual") or ()) if media else ()


def _name(request: Instance) -> str:
    return f"{request.task_name} {request.doc_id}"
