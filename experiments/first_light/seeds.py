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
from arlow_vl.evaluation.numbers import format_number
from arlow_vl.evaluation.tasks.predictions import write_json
from arlow_vl.evaluation.tasks.results import read_results
from arlow_vl.evaluation.tasks.scoring import ALL
from arlow_vl.evaluation.tasks.table import TITLES
from experiments.first_light.run import DATA, RECIPES, RUNS, TESTS, TEXT, arlow, evaluation


def run_seed(
    seed: int, tests: Mapping[tuple[str, ...], int], *, recipe: Path, text: Path, data: Path, folder: Path
) -> int:
    """Trains and evaluates with one seed below `folder`. Returns the exit status of the first command that failed.

    `tests` are tasks and how many items of each are answered.
    """
    run_dir, results = folder / f"seed-{seed}", folder / f"seed-{seed}" / "results"
    if all((results / task / "metrics.json").exists() for tasks in tests for task in tasks):
        return 0
    fit = ["fit", "--config", recipe, "--run_dir", run_dir, "--run.seed", seed, "--text_checkpoint", text]
    if status := arlow(fit):
        return status
    for tasks, limit in tests.items():
        if status := arlow(evaluation(tasks, limit, model=run_dir / "hf", data=data, results=results)):
            return status
    return 0


def spread(scores: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By task and "metric, group, system" the mean, standard deviation, smallest and largest value over the seeds.

    `scores` are those of metrics.json by seed and task.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task in next(iter(scores.values())):
        by_seed = {seed: estimates(of[task]) for seed, of in scores.items()}
        found[task] = {}
        for name in next(iter(by_seed.values())):
            values = [of[name] for of in by_seed.values() if name in of]
            found[task][name] = {
                "mean": fmean(values),
                "deviation": stdev(values) if len(values) > 1 else None,
                "smallest": min(values),
                "largest": max(values),
                "by_seed": {str(seed): of[name] for seed, of in by_seed.items() if name in of},
            }
    return found


def estimates(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the estimates of every metric, group and system of a task."""
    return {
        ", ".join((metric, *(() if group == ALL else (group,)), TITLES.get(system, system))): interval["estimate"]
        for metric, of in scores["metrics"].items()
        for group, of_group in of["groups"].items()
        for system, interval in of_group["systems"].items()
    }


def format_spread(found: Mapping[str, Mapping[str, Mapping[str, Any]]], seeds: Sequence[int]) -> str:
    """As a table: a line a score."""
    lines = [f"mean over {len(seeds)} seeds ({', '.join(map(str, seeds))}), smallest to largest, standard deviation"]
    for task, scores in found.items():
        lines += ["", task]
        width = max(map(len, scores))
        for name, of in scores.items():
            low, high, mean = (format_number(of[key], 3) for key in ("smallest", "largest", "mean"))
            deviation = "" if of["deviation"] is None else f"  sd {format_number(of['deviation'], 3)}"
            lines.append(f"  {name:<{width}}  {mean}  [{low}, {high}]{deviation}")
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
    parser.add_argument("--task", action="append", help="what to answer; may be repeated (default: as `make demo`)")
    parser.add_argument("--limit", type=positive_int, help="items of each task at most (default: as `make demo`)")
    args = parser.parse_args(argv)
    if not (args.text / "config.json").exists():
        print(f"{args.text} holds no model; `make demo` trains it, or name one with --text", file=sys.stderr)
        return CheckpointError.exit_code
    tests = {tuple(args.task): max(TESTS.values())} if args.task else dict(TESTS)
    if args.limit is not None:
        tests = {tasks: min(limit, args.limit) for tasks, limit in tests.items()}
    scores, seeds = {}, list(range(args.seeds))
    for seed in seeds:
        print(f"\n== seed {seed}, {seed + 1} of {len(seeds)}", flush=True)
        settings = {"recipe": args.recipe, "text": args.text, "data": args.data}
        if status := run_seed(seed, tests, folder=args.output, **settings):
            return status
        results = read_results(args.output / f"seed-{seed}" / "results")
        scores[seed] = {one.task.name: one.metrics_json["scores"] for one in results}
    found = spread(scores)
    write_json(args.output / "seeds.json", {"seeds": seeds, "spread": found})
    print(f"\n{format_spread(found, seeds)}\n\n{args.output / 'seeds.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
