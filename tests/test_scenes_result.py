"""The tables of experiments/scenes: from what `arlow evaluate` wrote to the README's rows."""

import json
from pathlib import Path

import pytest

from experiments.scenes.result import OF_ANSWERS, OF_CAPTIONS, SLOTS, WHOLE, interval, read_scores, rows

HERE = Path(__file__).parents[1] / "experiments" / "scenes"


def write_metrics(task: Path, metrics: dict) -> None:
    task.mkdir(parents=True)
    (task / "metrics.json").write_text(json.dumps({"scores": {"metrics": metrics}}), "utf-8")


def group(items: int, systems: tuple[str, ...]) -> dict:
    found = {name: {"estimate": (1 + place) / 8, "low": 0.1, "high": 0.75} for place, name in enumerate(systems)}
    return {"items": items, "systems": found}


def test_rows_are_of_the_splits_that_were_evaluated_and_of_kinds_with_enough_questions(tmp_path):
    slots = {name: {"groups": {"all": group(40, OF_CAPTIONS)}} for name in (WHOLE, *SLOTS)}
    write_metrics(tmp_path / "scenes-new", slots)
    write_metrics(tmp_path / "scenes-pairs", {name: found for name, found in slots.items() if name != "word"})
    kinds = {"colour": group(12, OF_ANSWERS), "reading": group(3, OF_ANSWERS)}
    write_metrics(tmp_path / "scenes-questions", {"exact match": {"groups": kinds}})
    write_metrics(tmp_path / "scenes-comparisons", {"exact match": {"groups": {"all": group(25, OF_ANSWERS)}}})
    interval = "[10.0, 75.0]"
    whole = f"12.5 {interval} | 25.0 {interval} | 37.5 {interval}"
    assert rows(read_scores(tmp_path)) == [
        f"| new draws | {whole} | 12.5 | 12.5 | 12.5 | 12.5 | 12.5 |",
        f"| held-out pairs | {whole} | 12.5 | 12.5 | 12.5 | 12.5 |  |",
        f"| colour | 12 | {whole} | 50.0 {interval} |",
        f"| comparison | 25 | {whole} | 50.0 {interval} |",
    ]


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"scenes-questions/metrics\.json is missing; README\.md"):
        read_scores(tmp_path)


def test_the_readme_shows_the_rows_of_the_result():
    result = json.loads((HERE / "result.json").read_text("utf-8"))
    readme = (HERE / "README.md").read_text("utf-8").splitlines()
    assert len(rows(result)) > 10 and set(rows(result)) <= set(readme)


@pytest.mark.parametrize(
    ("file", "line"), [("one_schedule.json", "steps, seed 3"), ("seed_3.json", "steps more, seed 4")]
)
def test_the_readme_shows_the_other_seed_as_its_results_have_it(file, line):
    result = json.loads((HERE / file).read_text("utf-8"))
    whole = [interval(found[WHOLE]["model"]) for found in result["captions"].values()]
    readme = (HERE / "README.md").read_text("utf-8")
    assert f" | {' | '.join(whole)} |\n" in readme
    of_all, comparison = (interval(result["questions"][kind]["model"]) for kind in ("all", "comparison"))
    assert f"{line} | {of_all} |" in readme and f" | {comparison} |\n" in readme
