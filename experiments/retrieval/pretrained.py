"""Five captions that the image might have, read by a decoder that others trained, which looks at the image.

Run it with `python -m experiments.retrieval.pretrained` behind `arlow data fetch` and the import of SmolLM2 (see
experiments/smollm2). Parts that are finished are left as they are. The tables and their figures go into
runs/retrieval/pretrained.md and pretrained.json.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from arlow_vl.data.fetch.captions import caption_name
from experiments.benchmarks.measure import machine, table
from experiments.retrieval.derive import (
    COUNT_OF_MEANS,
    NEIGHBOURS,
    derive,
    given_by_images,
    given_by_means,
    read_neighbours,
    read_splits,
)
from experiments.retrieval.run import CAPTIONS, DERIVED, RECIPES, RESULTS, RUNS, TASKS, fit_and_evaluate, recipe_of
from experiments.retrieval.score import Outputs, format_table, read_outputs, scored
from vision.whole_files import write_whole

NAME = "pretrained"
IMAGE, MEAN, MODEL = "the nearest image's caption", "the nearest mean's caption", "SmolLM2, five captions and the image"
CONTROLS = {"model": MODEL, "shuffled": f"{MODEL[:-9]}another image", "blank_image": f"{MODEL[:-9]}a blank image"}
DIFFERENCES = [(MODEL, other) for other in (IMAGE, MEAN, *list(CONTROLS.values())[1:])]
MEANS, COSINE = DERIVED / "means", DERIVED / "joined"
"""Captions of nearest means, and of nearest images, by the joined stages of the encoder that the recipe names."""


def main() -> int:
    splits, _ = read_splits(CAPTIONS, recipe_of(NAME))
    if not (MEANS / NEIGHBOURS).exists():
        derive(splits, given_by_means(splits), MEANS)
    if not (COSINE / NEIGHBOURS).exists():
        derive(splits, given_by_images(splits, whitened=False, count=1), COSINE)
    if status := fit_and_evaluate(NAME, MEANS, [str(RECIPES / "tasks" / f"{task}.yaml") for task in TASKS]):
        return status
    write_result()
    return 0


def systems_of(task: str, given: Mapping[str, list[str]]) -> dict[str, Outputs]:
    """By the name of each row of the table what it says of each image; `given`: five captions by the image's key."""
    nearest = {one["image"]: one["given"][0] for one in read_neighbours(COSINE)}
    copied: dict[str, Outputs] = {
        IMAGE: {key: nearest[key] for key in given},
        MEAN: {key: captions[0] for key, captions in given.items()},
    }
    results = RESULTS / NAME / f"retrieval-{task}"
    return copied | {row: read_outputs(results / system) for system, row in CONTROLS.items()}


def write_result() -> None:
    neighbours = read_neighbours(MEANS)
    tasks, found = {}, {}
    for task in TASKS:
        own = [one for one in neighbours if one["split"] == f"test-{task}"]
        given = {one["image"]: one["given"] for one in own}
        systems = systems_of(task, given)
        tasks[task] = scored(systems, {one["image"]: one["caption"] for one in own}, DIFFERENCES)
        tasks[task]["copied"] = {row: copied(systems[row], given) for row in CONTROLS.values()}
    for split in dict.fromkeys(one["split"] for one in neighbours):
        found[split] = ranks([one for one in neighbours if one["split"] == split])
    steps = recipe_of(NAME).run.max_steps
    figures = {"machine": machine(), "steps": steps, "ranks": found, "tasks": tasks}
    print(result_text(figures))
    write_whole(RUNS / f"{NAME}.md", result_text(figures))
    write_whole(RUNS / f"{NAME}.json", json.dumps(figures, indent=1) + "\n")


def copied(outputs: Outputs, given: Mapping[str, list[str]]) -> list[float]:
    """Shares of what was written that are the first caption given, the second and so on, in percent."""
    places = [
        names.index(caption_name(outputs[key])) if caption_name(outputs[key]) in names else None
        for key, names in ((key, [caption_name(caption) for caption in of]) for key, of in given.items())
    ]
    return [100 * places.count(place) / len(places) for place in range(COUNT_OF_MEANS)]


def ranks(neighbours: list[dict[str, Any]]) -> list[float]:
    """Shares of images whose own caption is the first that they were given, the second and so on, in percent."""
    own = {one["image"]: one["caption"] for one in neighbours}
    return copied(own, {one["image"]: one["given"] for one in neighbours})


def result_text(figures: Mapping[str, Any]) -> str:
    """Returns the text of pretrained.md for the figures of pretrained.json."""
    host = figures["machine"]
    places = [str(place + 1) for place in range(COUNT_OF_MEANS)]
    rows = [[f"{split}, own caption", *shares(of), f"{sum(of):.1f}"] for split, of in figures["ranks"].items()]
    for task, of in figures["tasks"].items():
        rows += [[f"{task}, {row}", *shares(some), f"{sum(some):.1f}"] for row, some in of["copied"].items()]
    return (
        "# Five captions and the image, read by SmolLM2\n\n"
        f"{host['processor']}, {host['instructions']}; torch {host['versions']['torch']}. "
        f"{figures['steps']} steps, seed 0.\n\n"
        f"{format_table(figures['tasks'])}\n\n`*` the interval leaves out zero.\n\n"
        "Which of the captions given, nearest mean first, is the image's own, and which is written, in percent:\n\n"
        f"{table(['', *places, 'any'], rows)}\n"
    )


def shares(of: list[float]) -> list[str]:
    return [f"{share:.1f}" for share in of]


if __name__ == "__main__":
    sys.exit(main())
