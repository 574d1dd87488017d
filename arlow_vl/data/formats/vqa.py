"""Questions about images: VQAv2 and OK-VQA (questions and annotations in two files), GQA, TextVQA, VizWiz, POPE.

    VQAv2, OK-VQA   {"questions": [{"image_id", "question", "question_id"}]}, and in the other file
                    {"annotations": [{"question_id", "answers": [{"answer"}, ...], "multiple_choice_answer"}]}
    GQA             {"02930152": {"imageId", "question", "answer"}, ...}
    TextVQA         {"data": [{"question_id", "image_id", "question", "answers": ["nokia", ...]}, ...]}
    VizWiz          [{"image": "VizWiz_val_00000000.jpg", "question", "answers": [{"answer"}, ...], "answer_type"}, ...]
    POPE            {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text", "label": "yes"}, a line each

All questions of an image are texts of one sample, whose key is the image's id. Of ten answers the data's own choice, or
the commonest, is trained on; all are references.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.images import Image, ImageRoot
from arlow_vl.data.formats.json_files import entries_under, id_of, load_json, objects_by_id, read_lines
from arlow_vl.data.formats.messages import clean_reference, clean_string, read_kind
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.questions import MAX_CHARACTERS
from arlow_vl.data.samples import Sample, Text, about_images
from arlow_vl.data.text import Unusable
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

ID_NAMES = ("{id}.jpg", "{id}.png", "{id:012d}.jpg")
SPLIT_NAMES = ("COCO_{split}_{id:012d}.jpg", "{split}/COCO_{split}_{id:012d}.jpg", "{split}/{id:012d}.jpg")
"""Patterns for the file name of an image id; the split is the question file's data_subtype, as train2014."""


_Named = tuple[str, Any, dict[str, Any]]
"""Name of an entry, the entry, and what the data say of its answers."""


class _Asked(NamedTuple):
    """A question and its name; `answer` holds what the data say of its answers."""

    name: str
    entry: dict[str, Any]
    answer: dict[str, Any]
    """"answer" or "multiple_choice_answer", "answers", "kind"; empty: there is no answer."""
    image_id: str


def read_vqa(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Reads a question file and the annotation file with its answers."""
    question_file, annotation_file = files
    questions, annotations = load_json(question_file), load_json(annotation_file, _answers_as_text())
    split = questions.get("data_subtype") if isinstance(questions, dict) else None
    lose = partial(tally.leave_out_text, task="question")
    where = f"{question_file.name}: question number"
    asked = objects_by_id(entries_under(question_file, questions, "questions"), "question_id", where, lose)
    where = f"{annotation_file.name}: annotation number"
    answers = objects_by_id(entries_under(annotation_file, annotations, "annotations"), "question_id", where, lose)
    del questions, annotations
    for key in answers.keys() - asked.keys():
        tally.leave_out_text(f"{annotation_file.name}: question {key}", Unusable("unknown_question_id"), "question")
    named = ((f"{question_file.name}: question {key}", entry, answers.get(key, {})) for key, entry in asked.items())
    find = _finder(images, split if isinstance(split, str) and "/" not in split else None)
    yield from _samples(_with_image_ids([named], "image_id", tally), find, tally)


def read_gqa(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Reads the questions of one or several files, by their ids."""
    named = (_gqa_entries(path, called) for path, called in names_of(files).items())
    yield from _samples(_with_image_ids(named, "imageId", tally), _finder(images, None), tally)


def _gqa_entries(path: Path, called: str) -> Iterator[_Named]:
    value = load_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{visible(str(path))}: no object of questions by their ids; name GQA's question file")
    for key, entry in value.items():
        yield f"{called}: question {key}", entry, _gqa_answer(entry) if isinstance(entry, dict) else {}


def _gqa_answer(entry: dict[str, Any]) -> dict[str, Any]:
    kinds = entry.get("types")
    return {"answer": entry.get("answer"), "kind": kinds.get("structural") if isinstance(kinds, dict) else None}


def read_textvqa(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Reads the questions under "data" of one or several files."""
    named = (
        _numbered(called, entries_under(path, load_json(path), "data")) for path, called in names_of(files).items()
    )
    yield from _samples(_with_image_ids(named, "image_id", tally), _finder(images, None), tally)


def read_vizwiz(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Reads the questions in the list of one or several files."""
    named = (_numbered(called, _listed(path)) for path, called in names_of(files).items())
    yield from _samples(_with_image_ids(named, "image", tally), images.find, tally)


def _numbered(called: str, entries: list[Any]) -> Iterator[_Named]:
    for number, entry in enumerate(entries, start=1):
        yield f"{called}: question number {number:,}", entry, entry if isinstance(entry, dict) else {}


def _listed(path: Path) -> list[Any]:
    value = load_json(path)
    if not isinstance(value, list):
        raise DataError(f"{visible(str(path))}: no list of questions; name VizWiz's annotation file")
    return value


def read_pope(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Reads the questions of one or several files of JSON lines, whatever their suffix: POPE's own is .json."""
    named = (
        (
            (name, entry | {"question": entry.get("text")}, {"answer": entry.get("label")})
            for name, entry in read_lines(path, called, tally)
        )
        for path, called in names_of(files).items()
    )
    yield from _samples(_with_image_ids(named, "image", tally), images.find, tally)


def _answers_as_text() -> Callable[[dict[str, Any]], Any]:
    """Makes a JSON hook that keeps only the text of a VQAv2 answer, each text once: 4 million objects take 2 GB."""
    texts: dict[str, str] = {}

    def text_of(entry: dict[str, Any]) -> Any:
        text = entry.get("answer")
        return texts.setdefault(text, text) if "answer_confidence" in entry and isinstance(text, str) else entry

    return text_of


def _with_image_ids(files: Iterable[Iterable[_Named]], key: str, tally: Tally) -> Iterator[_Asked]:
    """Yields the questions of each file. Ids are unique within a file alone: POPE's three each count from 1."""
    for named in files:
        seen = set()
        for name, entry, answer in named:
            try:
                if not isinstance(entry, dict):
                    raise Unusable("entry_not_an_object", f": {type(entry).__name__}")
                number = entry.get("question_id")
                if isinstance(number, str | int) and number in seen:
                    raise Unusable("duplicate_id", f": question_id {str(number)[:40]} comes twice")
                seen.add(number if isinstance(number, str | int) else None)
                yield _Asked(name, entry, answer, id_of(entry, key))
            except Unusable as fault:
                tally.leave_out_text(name, fault, "question")


def _samples(asked: Iterator[_Asked], find: Callable[[str], Image], tally: Tally) -> Iterator[Sample]:
    """Yields a sample for each image, in the order in which the data first ask about it."""
    by_image: dict[str, list[Text]] = {}
    for question in asked:
        texts = by_image.setdefault(question.image_id, [])
        try:
            texts.append(question_text(question.entry, question.answer, tally))
        except Unusable as fault:
            tally.leave_out_text(question.name, fault, "question")
    for key, texts in by_image.items():
        try:
            image = find(key)
            if not texts:
                raise Unusable("missing_text", ": no usable question")
        except Unusable as fault:
            tally.leave_out(f"image {key}", fault, members=len(texts))
            continue
        yield tally.use(Sample(key, (image,), tuple(texts)))


def question_text(entry: dict[str, Any], answer: dict[str, Any], tally: Tally, *, images: int = 1) -> Text:
    """Makes a question about so many images of an entry and its answers, as in `_Asked.answer`. Raises Unusable."""
    question = _short(entry.get("question"), "question")
    references = _references(answer.get("answers"), tally)
    chosen = answer.get("multiple_choice_answer", answer.get("answer"))
    if chosen is None and references:
        chosen = Counter(filter(None, references)).most_common(1)[0][0]
    messages = about_images(images, question=question, answer=_short(chosen, "answer"))
    return Text(
        "question", messages, references=references, kind=read_kind(answer.get("answer_type", answer.get("kind")))
    )


def _references(answers: Any, tally: Tally) -> tuple[str, ...]:
    """Returns the answers of several people, as strings or under "answer"; one that is no text is no reference.

    An empty answer is kept where others are not empty: VQA accuracy counts everybody who was asked.
    """
    if answers is None:
        return ()
    if not isinstance(answers, list):
        raise Unusable("answers_not_a_list", f": {type(answers).__name__}")
    references = []
    for value in answers:
        try:
            answer = clean_reference(value.get("answer") if isinstance(value, dict) else value, "answer")
            references.append(_not_too_long(answer, "answer"))
        except Unusable as fault:
            tally.ignored[f"reference: {fault}"] += 1
    return tuple(references) if any(references) else ()


def _short(value: Any, what: str) -> str:
    return _not_too_long(clean_string(value, what), what)


def _not_too_long(text: str, what: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise Unusable(f"{what}_too_long", f": {len(text):,} characters, the limit is {MAX_CHARACTERS:,}")
    return text


def _finder(images: ImageRoot, split: str | None) -> Callable[[str], Image]:
    """Finds the image of an id; the pattern of file names that was right last is tried first."""
    patterns = [*(SPLIT_NAMES if split else ()), *ID_NAMES]

    def find(key: str) -> Image:
        tried, image_files = [], []
        for pattern in patterns:
            if ":012d" in pattern and not (key.isascii() and key.isdigit()):
                continue
            name = pattern.format(id=int(key) if ":012d" in pattern else key, split=split)
            try:
                image = images.find(name)
            except Unusable as fault:
                if str(fault) != "missing_image_file":
                    raise
                tried.append(name)
                image_files += fault.image_files
                continue
            patterns.remove(pattern)
            patterns.insert(0, pattern)
            return image
        raise Unusable("missing_image_file", f": none of {', '.join(tried)} in {images.root}", image_files)

    return find
