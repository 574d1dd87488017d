"""Formats the figures as a table with a row per measure and a column per model."""

from collections.abc import Callable
from typing import Any

from experiments.benchmarks.measure import table

PARTS = {"whole scenes": "whole", "thing": "thing", "colour": "colour", "count": "count"}
SPLITS = {"test-new": "new draws", "test-pairs": "held-out pairs"}


def format_table(figures: dict[str, Any]) -> str:
    """Formats the title, the machine and the tables in Markdown."""
    machine, plan, models = figures["machine"], figures["plan"], figures["models"]
    text = (
        f"# Arlow beside other ways to show images\n\n{machine['processor']}, {machine['instructions']}, one thread; "
        f"torch {machine['versions']['torch']}, transformers {machine['versions']['transformers']}. "
        f"{plan['steps']} steps of {plan['captions']} captions and {plan['questions']} questions. Mean of "
        f"{len(plan['seeds'])} seeds, in brackets the smallest and the largest; shares in percent."
    )
    why = {"Arlow": models["Arlow"]["seeds"], **figures["variants"]}
    return "\n\n".join(
        [
            text,
            table(["measure", *models, "without a model"], rows(figures)),
            f"Variants, rate {models['Arlow']['rate']:g}, new draws:",
            table(
                ["variant", "validation loss", *PARTS, "text after, bits a byte"], list(map(variant, why, why.values()))
            ),
        ]
    )


def variant(name: str, seeds: dict[str, dict]) -> list[str]:
    shares = (spread([percent(seed["test-new"][part]) for seed in seeds.values()], "{:.1f}") for part in PARTS.values())
    after = spread([seed["text"]["after"]["bits_per_byte"] for seed in seeds.values()], "{:.4f}")
    return [name, spread([seed["loss"] for seed in seeds.values()], "{:.3f}"), *shares, after]


def rows(figures: dict[str, Any]) -> list[list[str]]:
    models, controls, speed = figures["models"], figures["controls"], figures["speed"]
    found = []

    def add(measure: str, of_seed: Callable[[dict], float | None], control: str = "", form: str = "{:.1f}") -> None:
        cells = [spread([of_seed(seed) for seed in model["seeds"].values()], form) for model in models.values()]
        found.append([measure, *cells, control])

    for split, words in SPLITS.items():
        its = controls[split]
        for part in its:
            name = "whole scenes" if part == "whole" else part
            control = f"{100 * its[part]:.1f}, nearest image"
            add(f"{words}: {name}", lambda seed, s=split, p=part: percent(seed[s].get(p)), control)
        if split == "test-new":
            usual = f"{100 * controls['test-new, most frequent']['whole']:.1f}, most frequent caption"
            add("whole scenes, another image shown", lambda seed: percent(seed["another image"]["whole"]), usual)
    for kind, prior in controls["questions"].items():
        control = f"{100 * prior:.1f}, question prior"
        add(f"questions: {kind}", lambda seed, k=kind: percent(seed["questions"][k]), control)
    add("validation loss, nats a token", lambda seed: seed["loss"], form="{:.3f}")
    found.append(["the same after the search", *map(searched_loss, models.values()), ""])
    found.append(["learning rate, of those tried", *(rate_of(model) for model in models.values()), ""])
    found.append(["trained parameters", *(f"{first(model)['trained']:,}" for model in models.values()), ""])
    for images, its in speed.items():
        cells = (f"{its[name]['steps_per_second']:.2f}" for name in models)
        found.append([f"steps a second, {images} image{'s' * (images != '1')} a row", *cells, ""])
        cells = (f"{its[name]['arlow_over']['median']:.2f}" for name in models)
        found.append(["Arlow is so many times as fast", *cells, ""])
    for when in ("before", "after"):
        add(f"text {when}, bits a byte", lambda seed, w=when: seed["text"][w]["bits_per_byte"], form="{:.4f}")
    found.append(["text logits the same to the last bit", *(same_text(model) for model in models.values()), ""])
    return found


def spread(values: list[float | None], form: str) -> str:
    """Formats values as "mean [smallest, largest]", or the mean alone if all are equal."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, low, high = (form.format(x) for x in (sum(known) / len(known), min(known), max(known)))
    return mean if low == high else f"{mean} [{low}, {high}]"


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def rate_of(model: dict) -> str:
    return f"{model['rate']:g} of {', '.join(model['search'])}"


def searched_loss(model: dict) -> str:
    return f"{min(model['search'].values()):.3f}"


def first(model: dict) -> dict:
    return next(iter(model["seeds"].values()))


def same_text(model: dict) -> str:
    texts = [seed["text"] for seed in model["seeds"].values()]
    return "yes" if all(text["before"]["logits_sha256"] == text["after"]["logits_sha256"] for text in texts) else "no"
