"""Trains the vision stage of `make demo` with several seeds and prints how far their scores lie apart.

    python -m experiments.first_light.seeds --seeds 3

The text stage is taken as it is; seeds.json holds what was printed. A seed that is finished is not trained again.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from arlow_vl.cli.parser import positive_int
from arlow_vl.errors import CheckpointError
from arlow_vl.evaluation.results import write_json
from arlow_vl.evaluation.scores import format_number, score_results, system_title
from experiments.first_light.run import DATA, RECIPES, RUNS, TEXT, arlow

QUESTIONS = 2000


def run_seed(seed: int, *, recipe: Path, text: Path, data: Path, folder: Path, questions: int) -> int:
    """Trains and evaluates with one seed below `folder`. Returns the exit status of the first command that failed."""
    run_dir, results = folder / f"seed-{seed}", folder / f"seed-{seed}" / "results"
    if (results / "meta.json").exists():
        return 0
    fit = ["fit", "--config", recipe, "--run_dir", run_dir, "--run.seed", seed, "--text_checkpoint", text]
    evaluate = ["evaluate", "--model", run_dir / "hf", "--data", data, "--output", results]
    return arlow(fit) or arlow([*evaluate, "--features", data / "features", "--questions", questions])


def spread(scores: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By task and "metric, system" the mean, standard deviation, smallest and largest value over the seeds."""
    seeds = list(scores)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task, scored in scores[seeds[0]]["tasks"].items():
        for metric, of in scored["metrics"].items():
            for system in of["systems"]:
                values = [
                    scores[seed]["tasks"][task]["metrics"][metric]["systems"][system]["estimate"] for seed in seeds
                ]
                found.setdefault(task, {})[f"{metric}, {system_title(system)}"] = {
                    "mean": fmean(values),
                    "deviation": stdev(values) if len(values) > 1 else None,
                    "smallest": min(values),
                    "largest": max(values),
                    "by_seed": dict(zip(map(str, seeds), values, strict=True)),
                }
    return found


def format_spread(found: Mapping[str, Mapping[str, Mapping[str, Any]]], seeds: Sequence[int]) -> str:
    """As a table: a line a score."""
    lines = [f"mean over {len(seeds)} seeds ({', '.join(map(str, seeds))}), smallest to largest, standard deviation"]
    for task, scores in found.items():
        lines += ["", task]
        for name, of in scores.items():
            low, high, mean = (format_number(of[key], 3) for key in ("smallest", "largest", "mean"))
            deviation = "" if of["deviation"] is None else f"  sd {format_number(of['deviation'], 3)}"
            lines.append(f"  {name:<48}{mean}  [{low}, {high}]{deviation}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.first_light.seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive_int, default=3, help="how many: 0, 1, 2 ... (default: 3)")
    parser.add_argument("--recipe", type=Path, default=RECIPES / "vision.yaml", help="recipe of the vision stage")
    parser.add_argument("--text", type=Path, default=TEXT, help="hf folder of the text stage")
    parser.add_argument("--data", type=Path, default=DATA, help="what `arlow data fetch` wrote")
    parser.add_argument("--output", type=Path, default=RUNS / "seeds", help="folder of the runs and of seeds.json")
    parser.add_argument("--questions", type=positive_int, default=QUESTIONS, help="test questions of each seed")
    args = parser.parse_args(argv)
    if not (args.text / "config.json").exists():
        print(f"{args.text} holds no model; `make demo` trains it, or name one with --text", file=sys.stderr)
        return CheckpointError.exit_code
    scores, seeds = {}, list(range(args.seeds))
    for seed in seeds:
        print(f"\n== seed {seed}, {seed + 1} of {len(seeds)}", flush=True)
        settings = {"recipe": args.recipe, "text": args.text, "data": args.data, "questions": args.questions}
        if status := run_seed(seed, folder=args.output, **settings):
            return status
        scores[seed] = score_results(args.output / f"seed-{seed}" / "results")
    found = spread(scores)
    write_json(args.output / "seeds.json", {"seeds": seeds, "spread": found})
    print(f"\n{format_spread(found, seeds)}\n\n{args.output / 'seeds.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
