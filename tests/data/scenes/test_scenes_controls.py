"""Neither the nearest training image, nor the question alone, nor the image alone can answer for a model."""

import pytest

from arlow_vl.data.scenes.grammar import parse_caption
from arlow_vl.data.scenes.write import write_scenes
from experiments.scenes.controls import answer_lines, caption_lines, samples, unheard_lines, unheard_shares
from tests.data.scenes.made_drawings import made_drawings

TESTS = ("test-new", "test-pairs", "test-colours", "test-counts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("controls") / "scenes"
    write_scenes(made_drawings(), out, {"train": 100, **dict.fromkeys(TESTS, 30)})
    return out


def table(lines):
    """Cells by row and column."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_the_nearest_training_image_has_no_held_out_scene_right(folder):
    found = table(caption_lines(folder, list(samples(folder, "train")), TESTS))
    for split in TESTS[1:]:
        assert float(found[split]["whole scene"]) == 0
    assert float(found["test-new"]["whole scene"]) < 10
    assert float(found["test-colours"]["colour"]) == 0
    assert float(found["test-counts"]["count"]) == 0


def test_the_question_alone_has_half_of_the_yes_no_questions_right(folder):
    found = table(answer_lines(folder, list(samples(folder, "train")), TESTS))
    for split in TESTS:
        assert float(found[split]["presence"]) == 50
        assert found[split]["relation yes/no"] in ("50.0", "-")
        assert float(found[split]["relation"]) < 60
    assert float(found["test-colours"]["colour"]) == 0


@pytest.mark.parametrize(
    ("caption", "kind", "shares"),
    [
        ("a red cat", "colour", [1]),
        ("a red cat left of a blue dog", "colour", [0.5, 0.5]),
        ("a red cat left of two blue dogs", "colour", [1, 1]),  # "is" or "are" tells
        ("a red cat left of two blue dogs", "count", [0.5, 0.5]),
        ("two red cats left of two blue dogs", "count", [1, 1]),
        ("a red cat left of a blue dog", "relation", [0.5, 0.5]),
        ("a red cat left of two blue dogs", "relation", [1, 1]),
        ('a red cat left of the word "cat"', "relation", [1, 1]),
        ("two red cats", "relation", []),
    ],
)
def test_who_does_not_hear_the_thing_chooses_among_the_answers_of_the_wording(caption, kind, shares):
    assert unheard_shares(parse_caption(caption), kind) == shares


def test_the_image_alone_leaves_much_to_be_heard(folder):
    found = table(unheard_lines(folder, TESTS))
    for split in TESTS:
        assert all(50 <= float(found[split][kind]) < 95 for kind in ("count", "colour", "relation"))
