"""Images beside what a person and the model say of them; chosen by hash, or by score where the page says so."""

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from arlow_vl.errors import DataError
from arlow_vl.evaluation.metrics.captions import caption_scores
from arlow_vl.evaluation.metrics.vqa import Rule, normalise_answer, spelled, vqa_accuracy
from arlow_vl.evaluation.results import MODEL, CaptionRow, QuestionRow, Row, Task

SHEET_SIZES = {"captions-test-known": 48}
USUAL_SIZE, EXTREMES, QUESTIONS, MOST_ANSWERS = 24, 8, 24, 14
SOMETHING_ELSE, NOTHING = "something else", "(nothing)"
FORMATS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}

ImageOf = Callable[[str], bytes]


@dataclass(frozen=True)
class Card:
    """An image as a data URI, its row, and the score of the model's words: CIDEr-D or accuracy."""

    image: str
    row: Row
    score: float


@dataclass(frozen=True)
class CaptionSheet:
    cards: list[Card]
    best: list[Card]
    worst: list[Card]


@dataclass(frozen=True)
class QuestionSheet:
    cards: list[Card]
    confusions: list["Confusion"]


@dataclass(frozen=True)
class Confusion:
    """Of a kind of question: a row an expected answer, a column a predicted one, the last column all others."""

    kind: str
    columns: list[str]
    rows: list[tuple[str, list[int]]]


def caption_sheet(task: Task, image_of: ImageOf) -> CaptionSheet:
    rows: Sequence[CaptionRow] = task.rows[MODEL]
    scores = caption_scores({row.key: row.prediction for row in rows}, {row.key: row.references for row in rows})
    by_hash = sorted(zip(rows, scores.cider_per_sample, strict=True), key=lambda pair: hash_of(pair[0].key))
    by_score = sorted(by_hash, key=lambda pair: pair[1], reverse=True)

    def cards(pairs: Sequence[tuple[CaptionRow, float]]) -> list[Card]:
        return [Card(image_uri(row.key, image_of), row, score) for row, score in pairs]

    size = SHEET_SIZES.get(task.name, USUAL_SIZE)
    return CaptionSheet(cards(by_hash[:size]), cards(by_score[:EXTREMES]), cards(by_score[: -EXTREMES - 1 : -1]))


def question_sheet(task: Task, image_of: ImageOf, *, rule: Rule) -> QuestionSheet:
    rows: Sequence[QuestionRow] = task.rows[MODEL]
    by_kind = {kind: [row for row in rows if row.kind == kind] for kind in sorted({row.kind for row in rows})}
    chosen = []
    for of_kind in by_kind.values():
        by_hash = sorted(of_kind, key=lambda row: hash_of(f"{row.key} {row.question}"))
        chosen += by_hash[: QUESTIONS // len(by_kind)]
    cards = [
        Card(image_uri(row.key, image_of), row, vqa_accuracy(row.prediction, row.answers, rule=rule)) for row in chosen
    ]
    return QuestionSheet(cards, [confusion(kind, of_kind) for kind, of_kind in by_kind.items()])


def confusion(kind: str, rows: Sequence[QuestionRow]) -> Confusion:
    """Counts of (usual answer, prediction), for the most frequent answers."""
    pairs = Counter((cell_of(most_given(row.answers)), cell_of(row.prediction)) for row in rows)
    expected: Counter[str] = Counter()
    for (answer, _), count in pairs.items():
        expected[answer] += count
    columns = sorted(answer for answer, _ in expected.most_common(MOST_ANSWERS))
    table = []
    for answer in columns:
        counts = [pairs[answer, prediction] for prediction in columns]
        table.append((answer, [*counts, expected[answer] - sum(counts)]))
    return Confusion(kind, [*columns, SOMETHING_ELSE], table)


def cell_of(answer: str) -> str:
    """The answer as it is compared; what normalisation leaves nothing of keeps its words."""
    return normalise_answer(answer) or " ".join(spelled(answer)) or NOTHING


def most_given(answers: Sequence[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


def hash_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def image_uri(key: str, image_of: ImageOf) -> str:
    """The image inside a data URI. Raises DataError for bytes of another format."""
    data = image_of(key)
    for signature, name in FORMATS.items():
        if data.startswith(signature):
            return f"data:image/{name};base64,{base64.b64encode(data).decode()}"
    raise DataError(f"image {key!r} begins with {data[:8]!r}, which is no JPEG, PNG or WebP; check `image_of`")
