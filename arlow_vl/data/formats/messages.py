"""Reading of conversations and documents of outside data as a `Text` whose image places are parts.

    {"role": "user", "content": "<image>\\nWhat is it?"}                 -> an image part and a text part
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "fox.jpg"}}, {"type": "text", ...}]}
    {"role": "user", "content": "How do I write <image>?"}              -> plain text, if the record has no image

A string's `<image>` is a place for as many images as the record lists, and only where no content part is an image:
in data that mark places by parts, `<image>` is just a word.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from arlow_vl.data.samples import TASKS, Message, Part, Text, TextTask
from arlow_vl.data.text import Unusable, clean_caption

PLACE = "<image>"
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
IMAGE_PARTS = ("image", "image_url")
IMAGE_KEYS = ("image_url", "image", "path", "url", "base64")  # of a part that brings its own image
CALLS = ("tool_calls", "function_call")
FIELDS = ("messages", "document", "texts")  # of a tar's .json
MAX_CHARACTERS = 2**20  # of a turn or document
MAX_KIND_CHARACTERS = 100


def clean_string(value: Any, what: str) -> str:
    """Cleans a string as captions are. Raises Unusable, as `caption_not_text`, if it is empty or no string."""
    if not isinstance(value, str):
        raise Unusable(f"missing_{what}" if value is None else f"{what}_not_text", f": {type(value).__name__}")
    try:
        text = clean_caption(value)
    except Unusable as fault:
        raise Unusable(str(fault).replace("text", what)) from None
    if len(text) > MAX_CHARACTERS:
        raise Unusable(f"{what}_too_long", f": {len(text):,} characters, the limit is {MAX_CHARACTERS:,}")
    return text


def clean_reference(value: Any, what: str = "reference") -> str:
    """Cleans one of several right answers. An empty one is kept: VQA accuracy counts everybody who was asked."""
    return "" if isinstance(value, str) and not value.strip() else clean_string(value, what)


def read_messages(messages: Any, images: Sequence[Any] = ()) -> tuple[Text, list[Any]]:
    """Reads a conversation; returns it and the images of its places, in order.

    Args:
        images: Images that the record lists apart from the text. Each place takes the next one, unless its part brings
            an image of its own or the "index" of one of these. A conversation in strings without any place shows them
            at the start of the first user turn, as trl does.

    Raises:
        Unusable: a place has no image or an image no place, the turns are not system?, user, assistant, user, ...,
            assistant, or a content is no text.
    """
    turns = [_turn(message) for message in _listed(messages, "messages")]
    _check_order([role for role, _ in turns])
    parts = [_parts(content) for _, content in turns]
    is_spelled = not any(part["type"] == "image" for turn in parts for part in turn)
    waiting, placed, written = dict(enumerate(images)), [], []
    of_users = [number for number, (role, _) in enumerate(turns) if role == "user"]
    if is_spelled and waiting and not any(PLACE in part["text"] for number in of_users for part in parts[number]):
        first = of_users[0]
        parts[first] = [{"type": "image"} for _ in waiting] + parts[first]
    for (role, _), turn in zip(turns, parts, strict=True):
        if is_spelled and role == "user":
            turn = list(_split_at_places(turn, len(waiting)))
        placed += _take_images(turn, role, waiting)
        written.append({"role": role, "content": _content(turn, role)})
    if waiting:
        raise Unusable("image_without_place", f": {len(waiting):,} of {len(images):,} images have no place in the text")
    return Text(_task(written), tuple(written)), placed


def read_document(parts: Any, images: Sequence[Any] = ()) -> tuple[Text, list[Any]]:
    """Reads a document in parts, or plain text; returns it and the images of its places, in order.

    Raises:
        Unusable: as `read_messages` does.
    """
    if isinstance(parts, str):
        parts = [{"type": "text", "text": parts}]
    pieces, waiting = _parts(_listed(parts, "document")), dict(enumerate(images))
    placed = _take_images(pieces, "user", waiting)
    if waiting:
        raise Unusable("image_without_place", f": {len(waiting):,} of {len(images):,} images have no place in the text")
    if not any(part["text"].strip() for part in pieces if part["type"] == "text"):
        raise Unusable("empty_document")
    return Text("document", document=tuple(pieces)), placed


def read_text(entry: Any, images: Sequence[Any] = ()) -> tuple[Text, list[Any]]:
    """Reads a {"messages" or "document", "task", "references", "kind"}; all but the first may be left out.

    Raises:
        Unusable: as `read_messages` does, and for fields of other types.
    """
    if not isinstance(entry, dict):
        raise Unusable("text_not_an_object", f": {type(entry).__name__}")
    is_document = entry.get("document") is not None
    text, placed = (
        read_document(entry["document"], images) if is_document else read_messages(entry.get("messages"), images)
    )
    task = entry.get("task") or text.task
    if task not in TASKS or (task == "document") != is_document:
        raise Unusable("unknown_task", f": {task!r:.40}; write {', '.join(TASKS[:-1])}, or document for a document")
    references = entry.get("references") or []
    if not isinstance(references, list):
        raise Unusable("references_not_a_list")
    answers = tuple(map(clean_reference, references))
    if answers and not any(answers):
        raise Unusable("empty_reference")
    return Text(task, text.messages, text.document, answers, read_kind(entry.get("kind"))), placed


def texts_named_in(fields: dict[str, Any]) -> list[str]:
    """Returns the fields of a tar's .json that hold conversations or documents; one that is no list is foreign data."""
    return [name for name in FIELDS if isinstance(fields.get(name), list)]


class BadText(NamedTuple):
    """A conversation or document of a tar's .json that cannot be used."""

    number: int
    fault: Unusable
    task: TextTask


def read_texts(fields: dict[str, Any], images: int) -> tuple[list[Text], list[BadText]]:
    """Returns the usable texts under "messages", "document" and "texts", and the others.

    A usable text has a place for every image of the sample.
    """
    entries: list[Any] = [{name: fields[name]} for name in FIELDS[:2] if name in fields]
    usable, bad = [], []
    for number, entry in enumerate([*entries, *fields.get("texts", [])]):
        try:
            text, placed = read_text(entry, range(images))
            if placed != list(range(images)):
                raise Unusable("image_of_its_own", ": the images of a tar's sample are its members, in their order")
            usable.append(text)
        except Unusable as fault:
            bad.append(BadText(number, fault, _named_task(entry)))
    return usable, bad


def _named_task(entry: Any) -> TextTask:
    """Returns the task of an unusable text, "conversation" where it names none."""
    if not isinstance(entry, dict):
        return "conversation"
    task = "document" if entry.get("document") is not None else entry.get("task")
    return task if task in TASKS else "conversation"


def read_kind(value: Any) -> str:
    """Returns the name of a group of questions; empty where the data give none."""
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_KIND_CHARACTERS or not value.isprintable():
        raise Unusable("bad_question_kind")
    return value


def _listed(value: Any, what: str) -> list[Any]:
    if value is None:
        raise Unusable(f"missing_{what}")
    if not isinstance(value, list):
        raise Unusable(f"{what}_not_a_list", f": {type(value).__name__}")
    if not value:
        raise Unusable(f"empty_{what}")
    return value


def _turn(message: Any) -> tuple[str, Any]:
    if not isinstance(message, dict):
        raise Unusable("message_not_an_object", f": {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Unusable("unknown_role", f": {role!r:.40}; write system, user or assistant")
    for field in CALLS:
        if message.get(field):
            raise Unusable("tool_calls_not_read", f": a turn of the {role} has {field}")
    if message.get("weight") == 0:
        raise Unusable("turn_without_weight", ": each turn of the assistant is trained on; leave this one out")
    return ROLES[role], message.get("content")


def _check_order(roles: list[str]) -> None:
    turns = roles[1:] if roles[0] == "system" else roles
    if "system" in turns:
        raise Unusable("system_not_first")
    if not turns or turns[0] == "assistant":
        raise Unusable("starts_with_assistant" if turns else "no_answer")
    if any(before == after for before, after in itertools.pairwise(turns)):
        raise Unusable("roles_do_not_alternate")
    if turns[-1] != "assistant":
        raise Unusable("ends_without_answer")


def _parts(content: Any) -> list[dict[str, Any]]:
    """Returns text and image parts; an image part may have its image under "source" or a number under "index"."""
    if isinstance(content, str) or not isinstance(content, list):
        return [{"type": "text", "text": clean_string(content, "content")}]
    return [_part(part) for part in content]


def _part(part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise Unusable("part_not_an_object", f": {type(part).__name__}")
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise Unusable("missing_content" if text is None else "content_not_text")
        if "\0" in text:
            raise Unusable("nul_in_content")
        return {"type": "text", "text": text}
    if kind not in IMAGE_PARTS:
        raise Unusable("unknown_part", f": {kind!r:.40}; write text, image or image_url")
    own = next(((key, part[key]) for key in IMAGE_KEYS if part.get(key) is not None), None)
    if own is None:
        return {"type": "image"} | ({} if (index := part.get("index")) is None else {"index": index})
    key, source = own
    if key == "image_url" and isinstance(source, dict):
        source = source.get("url")
    if key == "base64" and isinstance(source, str):
        source = f"data:;base64,{source}"
    return {"type": "image", "source": source}


def _split_at_places(parts: list[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
    """Splits parts at the first `number` spellings of `<image>`, which become places without line ends beside them."""
    for part in parts:
        if part["type"] == "image":
            number -= 1
            yield part
            continue
        pieces = part["text"].split(PLACE, max(0, number))
        number -= len(pieces) - 1
        for place, piece in enumerate(pieces):
            if place:
                yield {"type": "image"}
            text = piece.lstrip("\r\n") if place else piece
            yield {"type": "text", "text": text if place == len(pieces) - 1 else text.rstrip("\r\n")}


def _take_images(parts: list[dict[str, Any]], role: str, waiting: dict[int, Any]) -> list[Any]:
    """Takes the images of the parts' places: a place's own image, else the waiting one of its index, else the first."""
    taken = []
    for part in parts:
        if part["type"] != "image":
            continue
        if role != "user":
            raise Unusable("image_outside_user_turn", f": in a turn of the {role}")
        if "source" in part:
            taken.append(part.pop("source"))
            continue
        index = part.pop("index", next(iter(waiting), None))
        if index is None:
            raise Unusable("place_without_image")
        if type(index) is not int or index not in waiting:
            raise Unusable(
                "bad_image_index", f": {index!r:.40} is no image of the list, counted from 0, without a place"
            )
        taken.append(waiting.pop(index))
    return taken


def _content(parts: list[Part], role: str) -> str | list[Part]:
    """Returns one string where a turn has no image: templates of text models take nothing else."""
    if not any(part["type"] == "image" for part in parts):
        return clean_string("".join(part["text"] for part in parts), "content")
    kept = [part for part in parts if part["type"] == "image" or part["text"].strip()]
    if sum(len(part.get("text", "")) for part in kept) > MAX_CHARACTERS:
        raise Unusable("content_too_long", f": the limit is {MAX_CHARACTERS:,} characters")
    return kept


def _task(messages: list[Message]) -> TextTask:
    first = messages[0]["content"]
    is_caption = len(messages) == 2 and isinstance(first, list) and all(part["type"] == "image" for part in first)
    return "caption" if is_caption else "conversation"
