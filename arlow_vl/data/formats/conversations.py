"""Records with a conversation or caption and the images that it shows, as instruction data have them.

{"messages": [{"role": "user", "content": "<image>What is it?"}, ...], "images": ["fox.jpg"]}   trl, LLaMA-Factory
{"id": "7", "image": "fox.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, ...]}      LLaVA
{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "fox.jpg"}}, ...]}]}  OpenAI
{"images": [...], "texts": [{"user": "What is it?", "assistant": "A fox."}, ...]}               the Cauldron
{"image": "fox.jpg", "question": "What is it?", "answer": "a fox", "kind": "animals"}          or answers: a list
{"image": "fox.jpg", "text": "A fox."}                                                          a caption
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.images import ImageRoot
from arlow_vl.data.formats.json_files import read_records
from arlow_vl.data.formats.messages import PLACE, ROLES, clean_string, read_messages
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.formats.vqa import question_text
from arlow_vl.data.samples import Sample, Text, caption_text, short_facts
from arlow_vl.data.text import Unusable, keys_of

IMAGE_FIELDS = ("images", "image", "file_name", "image_path", "path", "filename", "filepath")
CAPTION_FIELDS = ("text", "caption")
CONVERSATION_FIELDS = ("messages", "conversations", "texts")
OTHER_MEDIA = ("videos", "video", "audios", "audio")
TEXT_FIELDS = (*CONVERSATION_FIELDS, "question", *CAPTION_FIELDS)
ANSWER_FIELDS = ("answer", "answers", "multiple_choice_answer", "answer_type", "kind")
READ_FIELDS = (*IMAGE_FIELDS, *OTHER_MEDIA, *TEXT_FIELDS, *ANSWER_FIELDS)
"""Fields that a sample is made of; of the others, short values are kept as facts."""


def read(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Yields a sample for each whole record, named by its file and line."""
    for path, name in names_of(files).items():
        yield from samples_of_records(read_records(path, name, tally), images.of(path), tally)


def samples_of_records(
    records: Iterable[tuple[str, dict[str, Any]]], images: ImageRoot, tally: Tally
) -> Iterator[Sample]:
    """Yields the samples of named records; those that are not whole are left out and counted."""
    for name, record in records:
        try:
            sample = sample_of_record(name, record, images, tally)
        except Unusable as fault:
            tally.leave_out(name, fault)
            continue
        yield tally.use(sample)


def sample_of_record(key: str, record: dict[str, Any], images: ImageRoot, tally: Tally) -> Sample:
    """Makes a sample. Raises Unusable if an image or the text is missing or they do not fit together."""
    for name in OTHER_MEDIA:
        if record.get(name):
            raise Unusable("media_not_read", f": it has {name}, and its text would be about what the model never gets")
    listed = _images_of(record)
    text, placed = _text_of(record, listed, tally)
    found = tuple(images.find(source) for source in placed)
    return Sample(key, found, (text,), short_facts(record, (*IMAGE_FIELDS, *TEXT_FIELDS, "answer", "answers", "kind")))


def _images_of(record: dict[str, Any]) -> list[Any]:
    """Returns the images of the first field for images that is not empty, as a list.

    A conversation may have no image, so its `path` is not taken for an image's.
    """
    is_conversation = any(record.get(name) is not None for name in CONVERSATION_FIELDS)
    for name in IMAGE_FIELDS[:4] if is_conversation else IMAGE_FIELDS:
        value = record.get(name)
        if value is not None and value != "" and value != []:
            return value if isinstance(value, list) else [value]
    return []


def _text_of(record: dict[str, Any], images: list[Any], tally: Tally) -> tuple[Text, list[Any]]:
    if record.get("messages") is not None:
        return read_messages(record["messages"], images)
    if record.get("conversations") is not None:
        return _llava(record["conversations"], images)
    if record.get("texts") is not None:
        return read_messages(_cauldron(record["texts"]), images)
    if not images:
        raise Unusable("missing_image", f"{keys_of(record)}: an image belongs under {', '.join(IMAGE_FIELDS[:3])}")
    if record.get("question") is not None:
        return question_text(record, record, tally, images=len(images)), images
    caption = next((record[name] for name in CAPTION_FIELDS if record.get(name) is not None), None)
    if caption is None:
        raise Unusable("missing_text", f"{keys_of(record)}: a text belongs under {', '.join(TEXT_FIELDS)}")
    return caption_text(clean_string(caption, "text"), images=len(images)), images


def _llava(turns: Any, images: list[Any]) -> tuple[Text, list[Any]]:
    """Reads LLaVA's from and value, whose user spells `<image>` for each image.

    Behind the last image `<image>` is a word, as in every form; in a record without images it is a missing image.
    """
    if not isinstance(turns, list):
        raise Unusable("conversations_not_a_list", f": {type(turns).__name__}")
    if not all(isinstance(turn, dict) for turn in turns):
        raise Unusable("message_not_an_object")
    if any("role" in turn or "content" in turn for turn in turns):  # some write messages under this name
        return read_messages(turns, images)
    spelled = (turn.get("from") for turn in turns if isinstance(turn.get("value"), str) and PLACE in turn["value"])
    is_spelled = any(isinstance(role, str) and ROLES.get(role) == "user" for role in spelled)
    if is_spelled != bool(images):
        raise Unusable("place_without_image" if is_spelled else "image_without_place")
    messages = [{"role": turn.get("from"), "content": turn.get("value")} for turn in turns]
    return read_messages(messages, images)


def _cauldron(turns: Any) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Unusable("texts_not_a_list")
    return [{"role": role, "content": turn.get(role)} for turn in turns for role in ("user", "assistant")]
