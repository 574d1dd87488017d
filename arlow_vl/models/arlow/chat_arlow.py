# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Chats as text: the template of the model folder, and user text that spells a control token without meaning it.

A chat template renders a conversation to one string, which is tokenised afterwards. In that string the `<image>` that
stands for an image and one that a user wrote look alike. So whatever people wrote is quoted before it is rendered:
behind the first character of every control token in it stands `QUOTE`. The tokenizer splits off control tokens first
and drops `QUOTE` then, so a quoted text has the ids that it has as plain text:

    "Is <image> a tag?"  ->  "Is <QUOTEimage> a tag?"  ->  the ids of those letters, none of which is `<image>`'s

Some tokens are no control token to the tokenizer ("special": false) and yet one to a chat template that writes them
(`<think>`, `<tool_call>`, in some models the marks of turns). They are quoted in people's text; answers may hold them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema

IMAGE_TOKEN = "<image>"
QUOTE = "\ufdd0\ufdd1"  # noncharacters: Unicode keeps them for use inside a program, no text holds them
SOURCE_KEYS = ("image", "url", "path", "base64")
MARK = re.compile(r"[^\w\s].+[^\w\s]", re.DOTALL)  # <think>, [INST]

# Some templates write today's date (Llama 3.2's), and the same data would be other tokens tomorrow. So here the date is
# always the one that Llama's templates default to.
DAY = {"%d": "26", "%-d": "26", "%e": "26", "%m": "07", "%-m": "7", "%b": "Jul", "%h": "Jul", "%B": "July", "%y": "24"}
DAY |= {"%Y": "2024", "%C": "20", "%G": "2024", "%g": "24", "%a": "Fri", "%A": "Friday", "%w": "5", "%u": "5"}
DAY |= {"%j": "208", "%-j": "208", "%U": "29", "%W": "30", "%V": "30", "%F": "2024-07-26", "%D": "07/26/24"}
DAY |= {"%H": "00", "%-H": "0", "%k": " 0", "%I": "12", "%-I": "12", "%l": "12", "%p": "AM", "%P": "am", "%M": "00"}
DAY |= {"%-M": "0", "%S": "00", "%-S": "0", "%f": "000000", "%R": "00:00", "%T": "00:00:00", "%r": "12:00:00 AM"}
DAY |= {"%c": "Fri Jul 26 00:00:00 2024", "%x": "07/26/24", "%X": "00:00:00", "%z": "", "%Z": ""}
DAY |= {"%-e": "26", "%-y": "24"}
TELLS_DAY = "strftime_now"  # the function that templates call
PERCENT = QUOTE[0]  # stands for %% while codes are replaced
FIXED_DAY = f"{{%- macro {TELLS_DAY}(format) -%}}{{%- set day = format | replace('%%', '{PERCENT}')"
FIXED_DAY += "".join(f" | replace('{code}', '{value}')" for code, value in DAY.items())
FIXED_DAY += f" -%}}{{{{ day | replace('{PERCENT}', '%') }}}}"
FIXED_DAY += "{%- if '%' in day %}{{ raise_exception('the day is not known in the form ' + format) }}{% endif -%}"
FIXED_DAY += "{%- endmacro %}\n"

# `return_assistant_tokens_mask=True` marks what stands inside `generation`: the answer and its end. An answer loses its
# leading white space, which could form one token with the line end of the generation prompt.
CHAT_TEMPLATE = """\
{%- macro written(content) -%}
    {%- if content is string -%}
        {{ content }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}<image>
            {%- elif part.type == 'text' -%}{{ part.text }}
            {%- else -%}{{ raise_exception('a message holds text and image parts, got ' + part.type) }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    <|im_end|>
{%- endmacro -%}
{{ bos_token }}
{%- for message in messages -%}
    {{ '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}{{ written(message.content) | trim }}{%- endgeneration -%}
    {%- else -%}
        {{ written(message.content) }}
    {%- endif -%}
    {{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


class ChatTokenizer:
    """A mixin for tokenizers: what people wrote stays plain text in a chat, and an encoded chat has one bos."""

    padding_side = "left"  # all prompts of a batch end in the last column, where generation begins

    def apply_chat_template(
        self, conversation: Any, tools: Any = None, documents: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Renders a chat as transformers does, with control tokens in messages, tools and documents as plain text.

        Raises:
            ValueError: a role is no plain word, or a message holds anything but text and images.
        """
        chat, tools, documents, _ = plain_chat(self, conversation, tools, documents)
        return super().apply_chat_template(chat, tools, documents, *args, **kwargs)  # pyrefly: ignore

    def get_chat_template(self, *args: Any, **kwargs: Any) -> str:
        """The template that renders a chat, with a fixed date."""
        return with_fixed_day(super().get_chat_template(*args, **kwargs))  # pyrefly: ignore

    def bos_once(self, text: Any, text_pair: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The text and the keywords to encode it with: a rendered chat begins with a bos of its own."""
        texts = [text] if isinstance(text, str) else text
        split = keywords.get("split_special_tokens")
        is_plain = self.split_special_tokens if split is None else split
        adds_bos = self.add_bos_token and keywords.get("add_special_tokens", True)
        if is_plain or not adds_bos or text_pair is not None or not all(isinstance(one, str) for one in texts):
            return text, keywords
        has_bos = [one.startswith(self.bos_token) for one in texts]
        if keywords.get("is_split_into_words") or not any(has_bos):
            return text, keywords
        if all(has_bos):
            return text, {**keywords, "add_special_tokens": False}
        return [one.removeprefix(self.bos_token) for one in texts], keywords


def plain_chat(
    tokenizer: PreTrainedTokenizerBase, conversation: Any, tools: Any = None, documents: Any = None
) -> tuple[Any, Any, Any, list[list[Any]]]:
    """A conversation, or several, for any chat template: contents as strings, all that people wrote quoted.

    `<image>` stands for each image; the last value lists the images of each conversation. Tools come back as JSON
    schemas.

    Raises:
        ValueError: a role is no plain word, or a message holds anything but text and images.
    """
    pattern = beginnings_of(template_tokens(tokenizer))
    of_answers = beginnings_of(control_tokens(tokenizer))
    is_batch = _is_batch(conversation)
    chats, images = [], []
    for messages in conversation if is_batch else [conversation]:
        read = [
            _plain_message(message, place, pattern, of_answers) for place, message in enumerate(_messages_of(messages))
        ]
        chats.append([message for message, _ in read])
        images.append([image for _, sources in read for image in sources])
    if tools is not None:
        tools = quoted([get_json_schema(tool) if callable(tool) else tool for tool in tools], pattern)
    return (chats if is_batch else chats[0]), tools, quoted(documents, pattern), images


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Tokens by which a chat template steers the model: `<image>` and all special tokens, whoever added them."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return frozenset({IMAGE_TOKEN, *tokenizer.all_special_tokens, *added})


def template_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The control tokens, and the other added tokens that the chat template names.

    Words and spaces are left out: a template holds them without meaning the token (`role`, or its indentation).
    """
    template = str(tokenizer.chat_template or "")
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    return control_tokens(tokenizer).union(text for text in added if MARK.fullmatch(text) and text in template)


@lru_cache
def beginnings_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """Matches the first character of each token, also where two of them overlap."""
    return re.compile(f"(?=(?:{'|'.join(map(re.escape, sorted(tokens)))}))(.)", re.DOTALL)


def quoted(value: Any, pattern: re.Pattern[str]) -> Any:
    """A string, or strings nested in lists and mappings, with `QUOTE` inside each control token."""
    if isinstance(value, str):
        return pattern.sub(rf"\g<1>{QUOTE}", value)
    if isinstance(value, Mapping):
        return {quoted(key, pattern): quoted(item, pattern) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [quoted(item, pattern) for item in value]
    return value


def drop_quotes(backend: Tokenizer) -> None:
    """Makes a tokenizer drop `QUOTE` after it has split off added tokens; a second call changes nothing.

    Added tokens that are "normalized" are found after normalisation. A tokenizer with some, such as GPT-2's, drops the
    quote in its pre-tokenizer, which splits the text there: the ids are not those of plain text, but still of letters.
    """
    if any(token.normalized for token in backend.get_added_tokens_decoder().values()):
        split, words = pre_tokenizers.Split(QUOTE, "removed"), backend.pre_tokenizer
        if words is None:
            backend.pre_tokenizer = split
        elif QUOTE.encode() not in words.__getstate__():
            backend.pre_tokenizer = pre_tokenizers.Sequence([split, words])
        return
    drop = normalizers.Replace(QUOTE, "")
    if backend.normalizer is None:
        backend.normalizer = drop
    elif QUOTE.encode() not in backend.normalizer.__getstate__():
        backend.normalizer = normalizers.Sequence([drop, backend.normalizer])


def with_fixed_day(template: str) -> str:
    """The template with a fixed date in place of today's."""
    return FIXED_DAY + template if TELLS_DAY in template and not template.startswith(FIXED_DAY) else template


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of `render_chat`: the tokenizer's own, or `CHAT_TEMPLATE` where it has none."""
    return with_fixed_day(tokenizer.get_chat_template() if tokenizer.chat_template else CHAT_TEMPLATE)


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], *, add_generation_prompt: bool) -> str:
    """One conversation as text, rendered by `template_of(tokenizer)`.

    Raises:
        ValueError: the template refuses the conversation, or `plain_chat` does.
    """
    chat, _, _, _ = plain_chat(tokenizer, list(messages))
    return render_plain_chat(tokenizer, chat, add_generation_prompt=add_generation_prompt)


def render_plain_chat(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Any], *, add_generation_prompt: bool) -> str:
    """Text of one conversation, or of its first messages, as `plain_chat` gives them.

    Raises:
        ValueError: the template refuses the conversation.
    """
    # Not the tokenizer's own method, which would quote the `<image>`s that stand for images.
    render: Any = PreTrainedTokenizerBase.apply_chat_template
    options = {"add_generation_prompt": add_generation_prompt, "chat_template": template_of(tokenizer)}
    try:
        text = render(tokenizer, chat, tokenize=False, **options)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses this conversation: {error}") from error
    if QUOTE in text and not isinstance(tokenizer, ChatTokenizer):
        drop_quotes(tokenizer.backend_tokenizer)
    return text


def _is_batch(conversation: Any) -> bool:
    first = next(iter(conversation), None) if isinstance(conversation, list | tuple) else None
    return isinstance(first, list | tuple) or hasattr(first, "messages")


def _messages_of(conversation: Any) -> Sequence[Any]:
    return getattr(conversation, "messages", conversation)


def _plain_message(
    message: Any, place: int, pattern: re.Pattern[str], of_answers: re.Pattern[str]
) -> tuple[dict[str, Any], list[Any]]:
    """A message whose content is one quoted string, and its images."""
    fields = _as_mapping(message)
    role, content, images = fields.pop("role", None), fields.pop("content", None), []
    if not isinstance(role, str) or pattern.search(role):
        raise ValueError(f"message {place}: a role is a plain word such as user or assistant, got {role!r}")
    if role == "assistant":
        pattern = of_answers
    if isinstance(content, list | tuple):
        content, images = _joined_parts(content, place, pattern)
    elif content is not None:
        content = quoted(content, pattern)
    return {"role": role, **({} if content is None else {"content": content}), **quoted(fields, pattern)}, images


def _joined_parts(parts: Sequence[Any], place: int, pattern: re.Pattern[str]) -> tuple[str, list[Any]]:
    """The texts of a message, `<image>` for each image between them, and the images' sources.

    Texts that follow each other are joined before they are quoted, since two of them could make a control token.
    """
    texts, images = [""], []
    for part in map(_as_mapping, parts):
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts[-1] += part["text"]
        elif kind in ("image", "image_url"):
            texts.append("")
            images.append(_source_of(part))
        else:
            raise ValueError(f"message {place}: a message holds text and image parts, got {part!r:.60}")
    return IMAGE_TOKEN.join(quoted(text, pattern) for text in texts), images


def _source_of(part: dict[str, Any]) -> Any:
    """Source of an image, for the image processor; None where the message only says that there is one."""
    if part["type"] == "image_url":  # OpenAI's form
        url = part.get("image_url")
        return url.get("url") if isinstance(url, Mapping) else url
    key = next((key for key in SOURCE_KEYS if part.get(key) is not None), None)
    if key == "base64" and not part[key].startswith("data:"):
        return f"data:image;base64,{part[key]}"
    return None if key is None else part[key]


def _as_mapping(value: Any) -> dict[str, Any]:
    """A new dictionary of a message or a part of one, which may be an object of a client library."""
    if isinstance(value, Mapping):
        return dict(value)
    if callable(getattr(value, "model_dump", None)):  # pydantic, as OpenAI's client gives them
        return value.model_dump(exclude_none=True)
    if is_dataclass(value) and not isinstance(value, type):
        return dict(vars(value))
    raise ValueError(f"a message, or a part of one, is a dictionary, got {type(value).__name__}")
