"""Extracts the rows of the tables here and in experiments/smollm2 from the results of `arlow evaluate`.

python -m experiments.scenes.result runs/scenes/results --out experiments/scenes/result.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from vision.whole_files import write_whole

SPLITS = {
    "scenes-new": "new draws",
    "scenes-pairs": "held-out pairs",
    "scenes-colours": "held-out colours",
    "scenes-counts": "held-out counts",
    "scenes-style": "a style never trained",
    "scenes-drawings": "drawings never trained",
}
WHOLE, SLOTS = "whole scene", ("thing", "colour", "count", "relation", "word")
QUESTIONS, COMPARISONS, EXACT = "scenes-questions", "scenes-comparisons", "exact match"
OF_CAPTIONS = ("model", "shuffled", "nearest_neighbour")
OF_ANSWERS = ("model", "shuffled", "question_prior", "nearest_neighbour")
FEW = 10  # items, below which a score says little


def read_scores(results: Path) -> dict[str, Any]:
    """Reads the scores of the model and its controls from a folder of results.

    These are the whole scenes and slots of each split, and the exact answers to each kind of question, with those about
    two images.
    """
    captions = {}
    for split in SPLITS:
        if (results / split).is_dir():
            metrics = metrics_of(results / split)
            captions[split] = {"items": metrics[WHOLE]["groups"]["all"]["items"]} | {
                name: {system: metrics[name]["groups"]["all"]["systems"][system] for system in OF_CAPTIONS}
                for name in (WHOLE, *SLOTS)
                if name in metrics  # a slot that no scene of the split has is no score
            }
    groups = dict(metrics_of(results / QUESTIONS)[EXACT]["groups"])
    if (results / COMPARISONS).is_dir():
        groups["comparison"] = metrics_of(results / COMPARISONS)[EXACT]["groups"]["all"]
    questions = {
        kind: {"items": found["items"]} | {system: found["systems"][system] for system in OF_ANSWERS}
        for kind, found in groups.items()
    }
    return {"captions": captions, "questions": questions}


def metrics_of(task: Path) -> dict[str, Any]:
    return read_json(task / "metrics.json")["scores"]["metrics"]


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise SystemExit(f"{path} is missing; README.md of the experiment has the command that writes it")
    return json.loads(path.read_text("utf-8"))


def rows(scores: dict[str, Any]) -> list[str]:
    """Formats the lines of a README's tables: captions, then answers."""
    lines = []
    slots = [slot for slot in SLOTS if any(slot in found for found in scores["captions"].values())]
    for split, found in scores["captions"].items():
        of_slots = [percent(found[slot]["model"]) if slot in found else "" for slot in slots]
        lines.append(line(SPLITS[split], *(interval(found[WHOLE][system]) for system in OF_CAPTIONS), *of_slots))
    for kind, found in scores["questions"].items():
        if found["items"] >= FEW:
            lines.append(line(kind, str(found["items"]), *(interval(found[system]) for system in OF_ANSWERS)))
    return lines


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def percent(score: dict[str, Any]) -> str:
    return f"{100 * score['estimate']:.1f}"


def interval(score: dict[str, Any]) -> str:
    """Formats a score in percent, with its interval over images."""
    return f"{percent(score)} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def write_result(result: dict[str, Any], out: Path) -> None:
    write_whole(out, json.dumps(result, indent=1) + "\n")
    print("\n".join(rows(result)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder that `arlow evaluate` wrote")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    write_result(read_scores(args.results), args.out)


if __name__ == "__main__":
    main()
