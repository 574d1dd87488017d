"""Questions from structured fields. They are templates: few, and yes and no equally often in each source of a split."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from arlow_vl.data.fetch.images import SourceImage
from arlow_vl.data.fetch.splits import hash_fraction

YES_NO = (
    (
        "Is it an animal?",
        {"animal"},
        {"clothing", "clock", "drink", "flag", "food", "object", "place", "plant", "vehicle"},
    ),
    (
        "Is it something to eat or drink?",
        {"food", "drink"},
        {"clothing", "clock", "flag", "musical instrument", "vehicle"},
    ),
)


def ask(images: Sequence[SourceImage]) -> list[list[dict[str, str]]]:
    """Returns the questions of each image of one split; "kind" is "yes/no" or "other"."""
    questions = [_open_questions(image) for image in images]
    for question, yes, no in YES_NO:
        for answer, positions in balance(images, lambda p, yes=yes: p.kind in yes, lambda p, no=no: p.kind in no):
            for position in positions:
                questions[position].append({"question": question, "answer": answer, "kind": "yes/no"})
    return questions


def _open_questions(image: SourceImage) -> list[dict[str, str]]:
    pairs = (("What kind of thing is it?", image.kind), ("Whose flag is it?", image.flag_of))
    return [{"question": question, "answer": answer, "kind": "other"} for question, answer in pairs if answer]


def balance(
    images: Sequence[SourceImage],
    is_yes: Callable[[SourceImage], bool],
    is_no: Callable[[SourceImage], bool],
) -> list[tuple[str, list[int]]]:
    """Returns the positions to answer yes and no, equally many in every source; hashes choose where there are more."""
    candidates = defaultdict(lambda: {"yes": [], "no": []})
    for position, image in enumerate(images):
        if is_yes(image) or is_no(image):
            candidates[image.source]["yes" if is_yes(image) else "no"].append(position)
    chosen = []
    for answers in candidates.values():
        count = min(len(positions) for positions in answers.values())
        for answer, positions in answers.items():
            ordered = sorted(positions, key=lambda position: hash_fraction(images[position].key, "question"))
            chosen.append((answer, ordered[:count]))
    return chosen
