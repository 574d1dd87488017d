"""Small result folders for the tests of scores and reports."""

import io
from pathlib import Path

from PIL import Image

from arlow_vl.evaluation.results import CONTROLS, MODEL, CaptionRow, QuestionRow, write_predictions

THINGS = [f"a {colour} {thing}" for thing in ("dog", "cat", "boat") for colour in ("red", "blue", "small", "big")]
COLOURS = ["red", "blue", "teal"]


def write_captions(folder: Path, task: str = "captions-test-known", **predictions: str) -> None:
    """The model is right; every control says one thing, or what `predictions` names for it."""
    for system in (MODEL, *CONTROLS["captions"]):
        rows = [
            CaptionRow(key=f"image-{i}", prediction=thing if system == MODEL else "a tree", references=[thing])
            for i, thing in enumerate(THINGS)
        ]
        if system in predictions:
            rows = [CaptionRow(key=r.key, prediction=predictions[system], references=r.references) for r in rows]
        write_predictions(folder, task, system, rows)


def write_questions(folder: Path, task: str = "easy-vqa-test", *, answer_is_article: bool = False) -> None:
    """Three images with two questions each; the model errs in one of six answers, the controls say "yes".

    With `answer_is_article` every answer is "A", the model says so, and the model without an image says nothing.
    """
    for system in (MODEL, *CONTROLS["questions"]):
        rows = []
        for i, colour in enumerate(COLOURS):
            said = colour if system == MODEL and colour != "teal" else "yes"
            for question, answer, kind, prediction in (
                ("what color is it?", colour, "other", said),
                ("is it there?", "yes", "yes/no", "yes"),
            ):
                if answer_is_article:
                    answer, prediction = "A", {MODEL: "a", "no_image": ""}.get(system, "yes")
                rows.append(
                    QuestionRow(key=f"shape-{i}", question=question, prediction=prediction, answers=[answer], kind=kind)
                )
        write_predictions(folder, task, system, rows)


def image_of(key: str) -> bytes:
    """A plain image as WebP, JPEG or PNG, by the last digit of its key."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(file, ("PNG", "JPEG", "WEBP")[int(key[-1]) % 3])
    return file.getvalue()
