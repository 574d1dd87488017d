"""Requests of OpenAI's chat and completion API, read into prompts and decoding options."""

import binascii
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import unquote_to_bytes

from arlow_vl.data.samples import Message, Part
from arlow_vl.printing import visible
from arlow_vl.serving.assistant import Assistant, PreparedImage, Prompt
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.encoding import IMAGE_MEMORY, image_bytes
from arlow_vl.serving.fields import Fields, checked_text, parse_object, shown
from arlow_vl.serving.limits import ServerLimits
from arlow_vl.serving.refusals import Refusal
from arlow_vl.serving.result_cache import ResultCache
from vision.decoding.animation import is_animated
from vision.decoding.image import ImageError
from vision.decoding.sources import from_base64

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 200
ADDRESS_SHOWN = 60  # characters of a refused address that a message shows
MAX_TOP_LOGPROBS = 20
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Options of OpenAI's and vLLM's that are not supported, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "parallel_tool_calls": (True, False),
    "service_tier": ("auto", "default"),
    "metadata": ({},),
    "min_p": (0, 0.0),
    "ignore_eos": (False,),
}
NO_BEAMS = "answers are written together and token by token here; leave it out, or use `arlow caption` or `arlow vqa`"


@dataclass(frozen=True)
class Request:
    """A valid request for an answer."""

    prompt: Prompt
    decoding: Decoding
    is_stream: bool
    includes_usage: bool
    top_logprobs: int | None
    has_token_ids: bool
    """True: the answer includes the ids of its tokens."""


@dataclass(frozen=True)
class HeatRequest:
    """A valid request for the heat maps of an answer."""

    prompt: Prompt
    token_ids: tuple[int, ...]
    """The answer's tokens."""


class RequestReader:
    """Reads the bodies of requests to one model. Thread-safe."""

    def __init__(self, assistant: Assistant, name: str, limits: ServerLimits) -> None:
        self._assistant, self.name, self._limits = assistant, name, limits
        self._images: ResultCache[bytes, PreparedImage] = ResultCache(IMAGE_MEMORY)
        self._tokenizer_lock = threading.Lock()  # each call sets options of the shared tokenizer
        self._max_characters = assistant.max_length * max(map(len, assistant.tokenizer.get_vocab()))

    def chat(self, body: bytes) -> Request:
        """Reads a body of /v1/chat/completions. Raises Refusal."""
        asked = Fields(parse_object(body, self._limits.max_values))
        self._check_model(asked)
        messages, images = self._messages(asked)
        top = asked.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
        wants_logprobs = asked.flag("logprobs")
        if top is not None and not wants_logprobs:
            raise asked.refuse("top_logprobs", "goes with logprobs true; give both or neither")
        top_logprobs = (top or 0) if wants_logprobs else None
        return self._request(asked, lambda: self._assistant.chat(messages, images), "messages", top_logprobs)

    def heat(self, body: bytes) -> HeatRequest:
        """Reads a body of /v1/heat. Raises Refusal."""
        asked = Fields(parse_object(body, self._limits.max_values))
        self._check_model(asked)
        if not self._assistant.sees_images:
            raise Refusal(400, "this is a text model and sees no images, so there are no heat maps of it")
        messages, images = self._messages(asked)
        ids = self._token_ids(asked)
        asked.end()
        if not images:
            raise asked.refuse("messages", "show no image, so there is nothing to look at; send those of the question")
        prompt = self._encoded(lambda: self._assistant.chat(messages, images), "messages")
        if len(ids) > self._assistant.max_length - len(prompt.ids):
            message = f"are {len(ids):,}, more than the model has room for behind the {len(prompt.ids):,} of the prompt"
            raise asked.refuse("token_ids", message)
        return HeatRequest(prompt, ids)

    def _token_ids(self, asked: Fields) -> tuple[int, ...]:
        given, config = asked.take("token_ids"), self._assistant.model.config.get_text_config()
        if not isinstance(given, list) or not 0 < len(given) <= self._limits.max_new_tokens:
            most = self._limits.max_new_tokens
            raise asked.refuse("token_ids", f"must be a list of 1 to {most:,} numbers, those of the answer's tokens")
        for place, one in enumerate(given):
            is_token = isinstance(one, int) and not isinstance(one, bool) and 0 <= one < config.vocab_size
            if not is_token or one == config.image_token_id:
                raise asked.refuse(f"token_ids[{place}]", f"is no token that the model writes, got {shown(one)}")
        return tuple(given)

    def completion(self, body: bytes) -> Request:
        """Reads a body of /v1/completions. Raises Refusal."""
        asked = Fields(parse_object(body, self._limits.max_values))
        self._check_model(asked)
        text = asked.take("prompt")
        if isinstance(text, list) and len(text) == 1:
            text = text[0]
        if not isinstance(text, str):
            raise asked.refuse("prompt", "must be one string")
        text = checked_text(text, "prompt")
        self._check_length(len(text))
        asked.neutral("logprobs", (), "ask /v1/chat/completions for them")
        return self._request(asked, lambda: self._assistant.text(text), "prompt", None)

    def _check_model(self, asked: Fields) -> None:
        name = asked.text("model")
        if name is None:
            raise asked.refuse("model", f"is missing; give {self.name!r}")
        if name != self.name:
            message = f"there is no model {shown(name)} here; give {self.name!r}"
            raise Refusal(404, message, "model", "model_not_found")

    def _request(self, asked: Fields, encode: Callable[[], Prompt], param: str, top_logprobs: int | None) -> Request:
        """Reads the options, and only then encodes the prompt."""
        is_stream, has_token_ids = asked.flag("stream"), asked.flag("return_token_ids")
        options = Fields(asked.take("stream_options") or {}, "stream_options")
        includes_usage = options.flag("include_usage")
        options.neutral("include_obfuscation", (False,))
        options.end()
        if includes_usage and not is_stream:
            raise asked.refuse("stream_options", "goes with stream true; give both or neither")
        settings, most = self._settings(asked)
        for name, allowed in NEUTRAL.items():
            asked.neutral(name, allowed)
        asked.neutral("num_beams", (1,), NO_BEAMS)
        asked.take("user")
        asked.end()
        _decoding(settings)
        prompt = self._encoded(encode, param)
        room = self._assistant.max_length - len(prompt.ids)
        if most is not None and most > room:
            message = (
                f"max_tokens is {most:,}, and behind the {len(prompt.ids):,} tokens of the prompt the model has room "
                f"for {room:,}; ask for fewer or shorten the prompt"
            )
            raise Refusal(400, message, "max_tokens", "context_length_exceeded")
        settings["max_new_tokens"] = most or min(room, self._limits.max_new_tokens)
        return Request(prompt, _decoding(settings), is_stream, includes_usage, top_logprobs, has_token_ids)

    def _encoded(self, encode: Callable[[], Prompt], param: str) -> Prompt:
        try:
            with self._tokenizer_lock:
                return encode()
        except ValueError as error:
            raise Refusal(400, visible(str(error)), param) from None

    def _settings(self, asked: Fields) -> tuple[dict[str, Any], int | None]:
        """Returns the fields of Decoding that were given, and the longest answer that was asked for, in tokens."""
        settings: dict[str, Any] = {name: asked.number(name) for name in ("temperature", "top_p", "repetition_penalty")}
        top_k = asked.whole("top_k", -1, 2**31)
        settings["top_k"] = 0 if top_k == -1 else top_k  # vLLM's value for all tokens
        settings["seed"] = asked.whole("seed", 0, 2**64 - 1)
        settings["stop"] = _stop(asked)
        most = [asked.whole(name, 1, self._limits.max_new_tokens) for name in ("max_tokens", "max_completion_tokens")]
        if None not in most:
            raise asked.refuse("max_tokens", "is the old name of max_completion_tokens; give one of them")
        return {name: value for name, value in settings.items() if value is not None}, most[0] or most[1]

    def _check_length(self, characters: int, param: str = "prompt") -> None:
        """Refuses text that is certainly too long for the model, before it is encoded, which takes a while."""
        if characters > self._max_characters:
            message = (
                f"{characters:,} characters of text are more than the {self._assistant.max_length:,} tokens that the "
                "model reads; shorten them"
            )
            raise Refusal(400, message, param, "context_length_exceeded")

    def _messages(self, asked: Fields) -> tuple[list[Message], list[PreparedImage]]:
        given = asked.take("messages")
        if not isinstance(given, list) or not given:
            raise asked.refuse("messages", "must be a list of at least one message")
        if len(given) > self._assistant.max_length:
            raise asked.refuse("messages", f"are {len(given):,}, more than the model reads tokens; send fewer")
        read = [
            _message(message, f"messages[{place}]", self._assistant.max_length) for place, message in enumerate(given)
        ]
        self._check_length(sum(characters for _, _, characters in read), "messages")
        places = [place for _, urls, _ in read for place in urls]
        if places and not self._assistant.sees_images:
            raise Refusal(
                400, f"{places[0][0]}: this is a text model and sees no images; send text alone", places[0][0]
            )
        if len(places) > self._limits.max_images:
            most = self._limits.max_images
            raise Refusal(400, f"{len(places)} images came, and a request may have {most}; send fewer", "messages")
        return [message for message, _, _ in read], [self._image(url, place) for place, url in places]

    def _image(self, url: str, place: str) -> PreparedImage:
        """Returns the prepared image of a data: URL, the same object for the same bytes."""
        data = _image_data(url, place, self._limits.image.max_bytes)
        digest = hashlib.sha256(data).digest()
        if (known := self._images.get(digest)) is not None:
            return known
        try:
            image = self._assistant.image(data, name=place, limits=self._limits.image)
        except ImageError as error:
            raise Refusal(400, str(error), place, error.reason) from None
        if is_animated(data):
            raise Refusal(400, f"{place}: the image is animated; send one frame of it", place, "animated")
        self._images.put(digest, image, image_bytes(image))
        return image


def _decoding(settings: dict[str, Any]) -> Decoding:
    try:
        return Decoding(**settings)
    except ValueError as error:
        named = str(error).split()[0]
        param = named if named in {field.name for field in fields(Decoding)} else None
        raise Refusal(400, str(error), param) from None


def _stop(asked: Fields) -> tuple[str, ...] | None:
    given = asked.take("stop")
    if given is None:
        return None
    texts = [given] if isinstance(given, str) else given
    is_right = isinstance(texts, list) and len(texts) <= MAX_STOPS and all(isinstance(text, str) for text in texts)
    if not is_right or not all(0 < len(text) <= MAX_STOP_CHARACTERS for text in texts):
        most = f"at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
        raise asked.refuse("stop", f"must be a string, or {most}")
    return tuple(checked_text(text, asked.path("stop")) for text in texts)


def _message(message: Any, path: str, max_parts: int) -> tuple[Message, list[tuple[str, str]], int]:
    """Returns a message for the chat template, the places and URLs of its images, and its number of characters."""
    given = Fields(message, path)
    role = given.text("role")
    if role not in ROLES:
        raise given.refuse("role", f"must be one of {', '.join(ROLES)}, got {shown(role)}")
    content, urls = given.take("content"), []
    if isinstance(content, str):
        checked_text(content, given.path("content"))
        characters = len(content)
    elif isinstance(content, list) and content:
        if len(content) > max_parts:
            raise given.refuse("content", f"has {len(content):,} parts, more than the model reads tokens; send fewer")
        parts = [_part(part, f"{path}.content[{place}]") for place, part in enumerate(content)]
        urls = [url for _, url in parts if url is not None]
        if urls and role != "user":
            raise Refusal(400, f"{urls[0][0]}: images come in messages of the user; this one is of {role}", urls[0][0])
        content = [part for part, _ in parts]
        characters = sum(len(part.get("text", "")) for part in content)
    else:
        raise given.refuse("content", "must be a string or a list of parts")
    for name in ("tool_calls", "annotations"):
        given.neutral(name, ([],))
    given.take("name")
    given.end()
    return {"role": ROLES[role], "content": content}, urls, characters


def _part(part: Any, path: str) -> tuple[Part, tuple[str, str] | None]:
    """Returns a part for the chat template, and the place and URL of its image."""
    given = Fields(part, path)
    kind, url = given.text("type"), None
    if kind == "text":
        text = given.text("text")
        if text is None:
            raise given.refuse("text", "is missing; give a string")
        read: Part = {"type": "text", "text": text}
    elif kind == "image_url":
        image = given.take("image_url")
        if isinstance(image, dict):
            holder = Fields(image, given.path("image_url"))
            image = holder.take("url")
            holder.neutral("detail", ("auto", "low", "high"))
            holder.end()
        if not isinstance(image, str):
            raise given.refuse("image_url", "holds no image; give {'url': 'data:image/png;base64,...'}")
        read, url = {"type": "image"}, (path, image)
    else:
        raise given.refuse("type", f"must be text or image_url, got {shown(kind)}")
    given.end()
    return read, url


def _image_data(url: str, place: str, max_bytes: int) -> bytes:
    """Returns the bytes of a data: URL; no address and no file is opened. Raises Refusal."""
    head, comma, body = url.partition(",")
    if not (head[:5].lower() == "data:" and head.lower().endswith(";base64") and comma):
        scheme = shown(head if len(head) <= ADDRESS_SHOWN else f"{head[:ADDRESS_SHOWN]}...")
        message = f"{place}: only data:image/...;base64, URLs are read, no addresses or files, got {scheme}"
        raise Refusal(400, message, place, "invalid_image_url")
    try:
        text = unquote_to_bytes(body) if "%" in body else body.encode("ascii")
        # Twice, as there may be line breaks; anything larger is not decoded.
        if len(text) > 2 * max_bytes + 4 or len(data := from_base64(text)) > max_bytes:
            raise Refusal(400, f"{place}: over {max_bytes:,} bytes, which is the limit", place, "too_large")
        return data
    except (binascii.Error, UnicodeEncodeError):
        raise Refusal(400, f"{place}: its base64 is broken; encode the image's bytes", place, "corrupt") from None
