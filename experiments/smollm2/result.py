"""The rows of this experiment's tables, out of what `arlow evaluate`, `verify-frozen` and `words.py` wrote.

python -m experiments.smollm2.result runs/smollm2 --out experiments/smollm2/result.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from vision.whole_files import write_whole

SPLITS = {
    "scenes-new": "new draws",
    "scenes-pairs": "two things that no training image shows together",
    "scenes-colours": "a thing in a colour that it never has in training",
}
WHOLE, SLOTS = "whole scene", ("thing", "colour", "count", "relation")
FEW = 10  # items, below which a score says little
QUESTIONS, EXACT = "scenes-questions", "exact match"
SYSTEMS = {"model": "the model", "shuffled": "another image", "nearest_neighbour": "the nearest image's"}


def read_results(run: Path) -> dict[str, Any]:
    """What is kept of a run folder, with the results of evaluation in `results`."""
    captions, questions = {}, {}
    for split in SPLITS:
        metrics = read_json(run / "results" / split / "metrics.json")["scores"]["metrics"]
        captions[split] = {
            name: {system: metrics[name]["groups"]["all"]["systems"][system] for system in SYSTEMS}
            for name in (WHOLE, *SLOTS)
        } | {"items": metrics[WHOLE]["groups"]["all"]["items"]}
    for group, found in read_json(run / "results" / QUESTIONS / "metrics.json")["scores"]["metrics"][EXACT][
        "groups"
    ].items():
        questions[group] = {
            "items": found["items"],
            **{name: found["systems"].get(name) for name in (*SYSTEMS, "question_prior")},
        }
    frozen = read_json(run / "frozen.json")
    return {"captions": captions, "questions": questions, "frozen": frozen, "words": read_json(run / "words.json")}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def interval(found: dict[str, Any] | None) -> str:
    """In percent, with the interval over images."""
    if found is None:
        return ""
    return f"{100 * found['estimate']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def rows(result: dict[str, Any]) -> list[str]:
    """Lines of the README's tables."""
    lines = []
    for split, title in SPLITS.items():
        found = result["captions"][split]
        slots = [f"{100 * found[slot]['model']['estimate']:.1f}" for slot in SLOTS]
        lines.append(f"| {' | '.join([title, *(interval(found[WHOLE][one]) for one in SYSTEMS), *slots])} |")
    for group, found in result["questions"].items():
        if found["items"] < FEW:
            continue
        cells = [interval(found[name]) for name in ("model", "shuffled", "question_prior", "nearest_neighbour")]
        lines.append(f"| {' | '.join([group, str(found['items']), *cells])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with results/, frozen.json and words.json")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    result = read_results(args.run)
    write_whole(args.out, json.dumps(result, indent=1) + "\n")
    print("\n".join(rows(result)))


if __name__ == "__main__":
    main()
