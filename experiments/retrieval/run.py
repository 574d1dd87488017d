"""Captions of similar images beside an image: does a model that copies and sees beat copying?

Run it with `python -m experiments.retrieval.run` behind `make demo`, whose data and text model it takes. Parts that are
finished are left as they are. The table and its figures go into runs/retrieval/result.md and result.json.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arlow_vl.data.images import CachedImages
from arlow_vl.models.folders import load_tokenizer
from arlow_vl.training.recipe import ImageTextRecipe
from arlow_vl.training.recipe_parsing import parse_recipe
from experiments.benchmarks.measure import machine, table
from experiments.first_light.run import arlow
from experiments.retrieval import encoded
from experiments.retrieval.derive import NEIGHBOURS, Split, derive, given_by_images, hits, read_neighbours, read_splits
from experiments.retrieval.score import Outputs, format_table, read_outputs, scored
from vision.whole_files import write_whole

RECIPES, RUNS = Path(__file__).parent, Path("runs/retrieval")
RESULTS, DERIVED = RUNS / "results", RUNS / "data"
CAPTIONS, FEATURES = Path("data/captions"), Path("data/features")
SEARCHES = {"cosine": False, "whitened": True}
"""Searches for neighbours; True: by whitened features."""
PROMPT, ENCODED = "captions in the prompt", "captions among the encoder's states"
GIVEN = "whitened"
"""Whose neighbours both models with captions are given."""
TASKS = {"known": "captions-test-known", "novel": "captions-test-novel"}
COPIED, MEAN, PLAIN = "the nearest image's caption, whitened", "the nearest mean's caption", "no captions"
DIFFERENCES = (
    *((arm, f"{arm}, another image") for arm in (PROMPT, ENCODED)),
    *((arm, other) for other in (PLAIN, COPIED, MEAN) for arm in (PROMPT, ENCODED)),
    (ENCODED, f"{ENCODED}, another's captions"),
)


def main() -> int:
    if status := fit_and_evaluate("plain", CAPTIONS.parent, list(TASKS.values())):
        return status
    splits, cached = read_splits(CAPTIONS, recipe_of("plain"))
    for search, whitened in SEARCHES.items():
        if not (DERIVED / search / NEIGHBOURS).exists():
            derive(splits, given_by_images(splits, whitened=whitened), DERIVED / search)
    if not (RUNS / "encoded.json").exists():
        run_encoded(splits, cached)
    tasks = [str(RECIPES / "tasks" / f"{task}.yaml") for task in TASKS]
    if status := fit_and_evaluate("prompt", DERIVED / GIVEN, tasks):
        return status
    write_result()
    return 0


def recipe_of(name: str) -> ImageTextRecipe:
    recipe = parse_recipe(["--config", str(RECIPES / f"{name}.yaml")])
    assert isinstance(recipe, ImageTextRecipe)
    return recipe


def fit_and_evaluate(name: str, data: Path, tasks: Sequence[str]) -> int:
    """Returns the exit status of the first command that failed."""
    evaluate = ["evaluate", "--model", RUNS / name / "hf", "--data", data, "--output", RESULTS / name]
    named = [word for task in tasks for word in ("--task", task)]
    return arlow(["fit", "--config", RECIPES / f"{name}.yaml"]) or arlow([*evaluate, "--features", FEATURES, *named])


def run_encoded(splits: dict[str, Split], cached: CachedImages) -> None:
    """Trains the second road and lets it and its controls caption both tests."""
    recipe = recipe_of("plain")
    assert recipe.text_checkpoint is not None
    given = {one["image"]: one["given"] for one in read_neighbours(DERIVED / GIVEN)}
    reader = encoded.build_reader(recipe, load_tokenizer(recipe.text_checkpoint), cached)
    train = splits["train"]
    losses = encoded.train(reader, recipe, encoded.seen_by(train, given), train.captions)
    reader.eval()
    outputs: dict[str, Any] = {"losses": losses}
    for task in TASKS:
        split = splits[f"test-{task}"]
        seen = encoded.controls(encoded.seen_by(split, given), split.captions)
        outputs[task] = {name: dict(zip(split.keys, reader.write(of), strict=True)) for name, of in seen.items()}
    write_whole(RUNS / "encoded.json", json.dumps(outputs, indent=1) + "\n")


def systems_of(task: str, neighbours: dict[str, list[dict[str, Any]]]) -> dict[str, Outputs]:
    """By the name of each row of the table what it says of each image."""
    plain = RESULTS / "plain" / TASKS[task]
    systems: dict[str, Outputs] = {
        "most frequent caption": read_outputs(plain / "most_frequent"),
        "the nearest image's caption": read_outputs(plain / "nearest_neighbour"),
        COPIED: {one["image"]: one["given"][0] for one in neighbours[GIVEN]},
        MEAN: read_outputs(plain / "class_means"),
        PLAIN: read_outputs(plain / "model"),
        f"{PLAIN}, another image": read_outputs(plain / "shuffled"),
    }
    controls = {"model": "", "shuffled": ", another image", "blank_image": ", a blank image"}
    prompt = RESULTS / "prompt" / f"retrieval-{task}"
    systems |= {PROMPT + control: read_outputs(prompt / system) for system, control in controls.items()}
    written = json.loads((RUNS / "encoded.json").read_text(encoding="utf-8"))[task]
    return systems | {ENCODED + control: outputs for control, outputs in written.items()}


def write_result() -> None:
    neighbours = {search: read_neighbours(DERIVED / search) for search in SEARCHES}
    tasks, found = {}, {}
    for task in TASKS:
        own = {search: [one for one in of if one["split"] == f"test-{task}"] for search, of in neighbours.items()}
        captions = {one["image"]: one["caption"] for one in own[GIVEN]}
        tasks[task] = scored(systems_of(task, own), captions, DIFFERENCES)
    for search, of in neighbours.items():
        splits = dict.fromkeys(one["split"] for one in of)
        found[search] = {split: hits([one for one in of if one["split"] == split]) for split in splits}
    steps = recipe_of("plain").run.max_steps
    figures = {"machine": machine(), "steps": steps, "hits": found, "tasks": tasks}
    print(result_text(figures))
    write_whole(RUNS / "result.md", result_text(figures))
    write_whole(RUNS / "result.json", json.dumps(figures, indent=1) + "\n")


def result_text(figures: Mapping[str, Any]) -> str:
    """Returns the text of result.md for the figures of result.json."""
    host, found = figures["machine"], figures["hits"]
    shares = [
        [search, *(f"{100 * some:.1f}% ({100 * first:.1f}%)" for first, some in of.values())]
        for search, of in found.items()
    ]
    return (
        "# Captions of similar images beside the image\n\n"
        f"{host['processor']}, {host['instructions']}, one thread; torch {host['versions']['torch']}. "
        f"{figures['steps']} steps of 64 captions each, seed 0.\n\n"
        f"{format_table(figures['tasks'])}\n\n`*` the interval leaves out zero.\n\n"
        "How often an image's own caption is among the three that it is given (is the first of them):\n\n"
        f"{table(['neighbours by', *next(iter(found.values()))], shares)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
