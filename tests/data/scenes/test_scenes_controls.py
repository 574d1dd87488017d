"""Neither the nearest training image nor the question alone can answer for a model."""

import pytest

from arlow_vl.data.scenes.write import write_scenes
from experiments.scenes.controls import answer_lines, caption_lines, samples
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
