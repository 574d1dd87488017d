"""Captions of similar images beside an image: does a model that copies and sees beat copying?

Run it with `python -m experiments.retrieval.run` behind `make demo`, whose data and text model it takes. Parts that are
finished are left as they are. The table and its figures go into runs/retrieval/result.md and result.json.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arlow_vl.data.images import CachedImages
from arlow_vl.models.folders import load_tokenizer
from arlow_vl.training.recipe import ImageTextRecipe, parse_recipe
from experiments.benchmarks.measure import machine
from experiments.first_light.run import arlow
from experiments.retrieval import encoded
from experiments.retrieval.derive import NEIGHBOURS, Split, derive, hits, read_neighbours, read_splits
from experiments.retrieval.score import Outputs, read_outputs, scored, told
from vision.whole_files import write_whole

RECIPES, RUNS = Path(__file__).parent, Path("runs/retrieval")
RESULTS, DERIVED = RUNS / "results", RUNS / "data"
CAPTIONS, FEATURES = Path("data/captions"), Path("data/features")
SEARCHES = {"cosine": False, "whitened": True}
"""How neighbours are found; True: by whitened features."""
ARMS = {"prompt": "cosine", "whitened": "whitened", "lora": "whitened"}
"""Recipes with captions in the prompt, and whose neighbours they are given."""
ENCODED = "whitened"
"""Whose neighbours the second road is given."""
TASKS = {"known": "captions-test-known", "novel": "captions-test-novel"}
DIFFERENCES = (
    ("captions in the prompt", "no captions"),
    ("captions in the prompt", "captions in the prompt, another image"),
    ("captions in the prompt", "the nearest image's caption"),
    ("whitened captions in the prompt", "no captions"),
    ("whitened captions in the prompt", "whitened captions in the prompt, another image"),
    ("whitened captions in the prompt", "the nearest image's caption, whitened"),
    ("the same with adapters", "the same with adapters, another image"),
    ("the same with adapters", "the nearest image's caption, whitened"),
    ("captions among the encoder's states", "no captions"),
    ("captions among the encoder's states", "captions among the encoder's states, another image"),
    ("captions among the encoder's states", "captions among the encoder's states, another's captions"),
    ("captions among the encoder's states", "the nearest image's caption, whitened"),
    ("captions among the encoder's states", "the nearest mean's caption"),
)
TITLES = {
    "prompt": "captions in the prompt",
    "whitened": "whitened captions in the prompt",
    "lora": "the same with adapters",
    "encoded": "captions among the encoder's states",
}


def main() -> int:
    if status := fit_and_evaluate("plain", CAPTIONS.parent, list(TASKS.values())):
        return status
    splits, cached = read_splits(CAPTIONS, recipe_of("plain"))
    for search, whitened in SEARCHES.items():
        if not (DERIVED / search / NEIGHBOURS).exists():
            derive(splits, DERIVED / search, whitened=whitened)
    for name, search in ARMS.items():
        tasks = [str(RECIPES / "tasks" / f"{task}.yaml") for task in TASKS]
        if status := fit_and_evaluate(name, DERIVED / search, tasks):
            return status
    if not (RUNS / "encoded.json").exists():
        run_encoded(splits, cached)
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
    given = {one["image"]: one["given"] for one in read_neighbours(DERIVED / ENCODED)}
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
        "the nearest image's caption, whitened": {one["image"]: one["given"][0] for one in neighbours["whitened"]},
        "the nearest mean's caption": read_outputs(plain / "class_means"),
        "no captions": read_outputs(plain / "model"),
        "no captions, another image": read_outputs(plain / "shuffled"),
    }
    for name in ARMS:
        folder = RESULTS / name / f"retrieval-{task}"
        for control, of in ({"": "model", ", another image": "shuffled", ", a blank image": "blank_image"}).items():
            systems[TITLES[name] + control] = read_outputs(folder / of)
    written = json.loads((RUNS / "encoded.json").read_text(encoding="utf-8"))[task]
    of_control = {name: f", {name}" for name in written} | {
        "model": "",
        "another image's captions": ", another's captions",
    }
    return systems | {TITLES["encoded"] + of_control[name]: outputs for name, outputs in written.items()}


def write_result() -> None:
    neighbours = {search: read_neighbours(DERIVED / search) for search in SEARCHES}
    tasks, found = {}, {}
    for task in TASKS:
        own = {search: [one for one in of if one["split"] == f"test-{task}"] for search, of in neighbours.items()}
        captions = {one["image"]: one["caption"] for one in own["cosine"]}
        tasks[task] = scored(systems_of(task, own), captions, DIFFERENCES)
    for search, of in neighbours.items():
        splits = dict.fromkeys(one["split"] for one in of)
        found[search] = {split: hits([one for one in of if one["split"] == split]) for split in splits}
    host = machine()
    shares = ["| own caption among the given, % (the first one) | " + " | ".join(found["cosine"]) + " |"]
    shares += ["| --- " * (1 + len(found["cosine"])) + "|"]
    shares += [
        f"| {search} | " + " | ".join(f"{100 * some:.1f} ({100 * first:.1f})" for first, some in of.values()) + " |"
        for search, of in found.items()
    ]
    text = (
        f"# Captions of similar images beside the image\n\n{host['processor']}, one thread; "
        f"torch {host['versions']['torch']}. {recipe_of('plain').run.max_steps} steps of 64 captions each, seed 0.\n\n"  # pyrefly: ignore
        f"{told(tasks)}\n\n* the interval leaves out zero.\n\n" + "\n".join(shares)
    )
    print(text)
    write_whole(RUNS / "result.md", text + "\n")
    write_whole(RUNS / "result.json", json.dumps({"machine": host, "hits": found, "tasks": tasks}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
