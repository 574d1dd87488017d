"""Questions about an image, as a sample's .json member lists them under "questions"."""

from typing import Any, NamedTuple

from arlow_vl.data.text import Unusable, clean_caption

MAX_CHARACTERS = 10_000  # of a question or an answer
MAX_KIND_CHARACTERS = 100
UNNAMED_KIND = "other"


class Question(NamedTuple):
    """A question about an image and its answer; both are clean text that is not empty."""

    question: str
    answer: str
    kind: str
    """Group for scores by kind; "other" where the data name none."""


def read_questions(value: Any) -> tuple[tuple[Question, ...], list[tuple[int, str]]]:
    """Returns the usable questions of a list of {"question", "answer", "kind"}, and number and reason of the others.

    A sample without a list has no questions, which is no fault; anything else in place of the list is a fault.
    """
    if value is None:
        return (), []
    if not isinstance(value, list):
        return (), [(0, "questions_not_a_list")]
    usable, bad = [], []
    for number, entry in enumerate(value):
        try:
            usable.append(_question(entry))
        except Unusable as fault:
            bad.append((number, str(fault)))
    return tuple(usable), bad


def _question(entry: Any) -> Question:
    if not isinstance(entry, dict):
        raise Unusable("question_not_an_object")
    question, answer = _text(entry, "question"), _text(entry, "answer")
    kind = entry.get("kind", UNNAMED_KIND)
    if not isinstance(kind, str) or not 0 < len(kind) <= MAX_KIND_CHARACTERS or not kind.isprintable():
        raise Unusable("bad_question_kind")
    return Question(question, answer, kind)


def _text(entry: dict[str, Any], part: str) -> str:
    value = entry.get(part)
    if not isinstance(value, str):
        raise Unusable(f"missing_{part}" if value is None else f"{part}_not_text")
    try:
        text = clean_caption(value)
    except Unusable as fault:
        raise Unusable(str(fault).replace("text", part)) from None
    if len(text) > MAX_CHARACTERS:
        raise Unusable(f"{part}_too_long")
    return text
