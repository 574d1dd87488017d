"""A sample as members of a tar, from which the reader of shards makes the same sample again.

17.jpg  17.txt                     an image and its caption
17.jpg  17.txt  17.json            questions go into the .json, as do other fields of the data
18.0.jpg  18.1.jpg  18.json        several images; all texts are under "texts"
"""

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from arlow_vl.data.index.records import compact, text_facts
from arlow_vl.data.questions import MAX_CHARACTERS, UNNAMED_KIND
from arlow_vl.data.samples import Sample, Text

OURS = ("questions", "texts", "messages", "document")
"""Names under which a .json holds texts: fields of the data that have them are dropped."""
MAGIC = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"II": "tif",
    b"MM": "tif",
}
UNSAFE = re.compile(r"[^\w-]")


def members_of(sample: Sample, key: str, images: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields names and bytes. The order of texts is that of the reader: a caption, questions, the others."""
    texts, fields = list(sample.texts), {name: value for name, value in sample.fields.items() if name not in OURS}
    caption = ""
    if len(images) == 1:
        if texts and texts[0] == _caption_text(texts[0]):
            caption = texts.pop(0).messages[1]["content"]
        questions = []
        while texts and (question := _plain_question(texts[0])):
            questions.append(question)
            del texts[0]
        if questions:
            fields["questions"] = questions
    if texts:
        fields["texts"] = [text_facts(text) for text in texts]
    if not caption:
        fields.pop("caption", None)  # it would be read as one more text
    for number, image in enumerate(images):
        yield f"{key}.{f'{number}.' if len(images) > 1 else ''}{_extension(image)}", image
    if caption:
        yield f"{key}.txt", caption.encode()
    if fields:
        yield f"{key}.json", compact(fields)


def _caption_text(text: Text) -> Text | None:
    """Returns a caption as the reader makes it of a .txt beside one image; None: the text has another form."""
    if text.task != "caption" or len(text.messages) != 2 or not isinstance(text.messages[1]["content"], str):
        return None
    answer = {"role": "assistant", "content": text.messages[1]["content"]}
    return Text("caption", ({"role": "user", "content": [{"type": "image"}]}, answer))


def _plain_question(text: Text) -> dict[str, str] | None:
    """Returns a question as "questions" lists it; None: it has several right answers or another form."""
    if text.task != "question" or len(text.messages) != 2 or text.kind == UNNAMED_KIND:
        return None
    parts, answer = text.messages[0]["content"], text.messages[1]["content"]
    if not isinstance(parts, list) or len(parts) != 2 or parts[1]["type"] != "text" or not isinstance(answer, str):
        return None
    question = parts[1]["text"]
    messages = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}, text.messages[1]
    is_plain = all(0 < len(said) <= MAX_CHARACTERS and said == said.strip() for said in (question, answer))
    if not is_plain or text != Text("question", messages, kind=text.kind):
        return None
    return {"question": question, "answer": answer, **({"kind": text.kind} if text.kind else {})}


def _extension(image: bytes) -> str:
    """Returns the extension by the image's first bytes; readers do not rely on it, so a wrong guess does no harm."""
    return next((extension for magic, extension in MAGIC.items() if image.startswith(magic)), "jpg")


def safe_key(key: str) -> str:
    """Returns the key with dots and all else that has a meaning in a member's name percent-encoded, as in `a%2Eb`.

    Different keys stay different; an empty one becomes `%`.
    """
    return UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), key) or "%"


def write_tar(file: BinaryIO, members: Iterator[tuple[str, bytes]]) -> None:
    """Writes a plain tar that depends on its members alone: no times, no owners."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
