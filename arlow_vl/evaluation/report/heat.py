"""Draws heat maps of some samples, and the test of whether the heat is faithful (`faithfulness`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arlow_vl.evaluation.bootstrap import Interval
from arlow_vl.evaluation.explain import explain_image
from arlow_vl.evaluation.faithfulness import (
    ORDERS,
    SHARES,
    AskedImage,
    HeatTest,
    measure_heat,
    read_heat_tests,
    write_heat_tests,
)
from arlow_vl.evaluation.heat_maps import draw_explanation
from arlow_vl.evaluation.numbers import format_number
from arlow_vl.evaluation.report.charts import Curve, Plot, plot_curves
from arlow_vl.evaluation.report.material import shortest_uri
from arlow_vl.evaluation.tasks.items import Item
from arlow_vl.evaluation.tasks.results import Results
from arlow_vl.models.folder_files import hash_model
from arlow_vl.models.folders import load_vision_language_model
from arlow_vl.progress import ProgressLine
from vision.decoding.sources import read_image

NAME = "heat.json"
MAPS, CHOICE_TOKENS = 4, 8
NAMES = {"most": "the most attended", "random": "as many at random", "least": "the least attended"}


@dataclass(frozen=True)
class HeatSample:
    """A sample whose heat is drawn or tested."""

    item: Item
    max_new_tokens: int

    def read(self) -> AskedImage:
        (image,) = self.item.images
        return AskedImage(read_image(image.read_image(), name=image.key), self.item.messages, self.max_new_tokens)


@dataclass
class Heat:
    """Heat maps and tests of a report."""

    maps: list[tuple[str, str]] = field(default_factory=list)
    """(data URI of a sheet, text that the model wrote)."""
    tests: list[HeatTest] = field(default_factory=list)
    """One for each layer; empty: not tested."""
    note: str = ""
    """The reason why there are no maps; empty if there are."""


def look_at_heat(
    folder: Path, results: Sequence[Results], asked: Sequence[HeatSample], *, model: Path | None, tested: int | None
) -> Heat:
    """Draws the heat of the first samples, and tests it on the first `tested`, which heat.json keeps.

    `tested` 0: no model is opened; None: nothing is tested, and an existing heat.json is read.

    Raises:
        ValueError: heat cannot be tested on these images (see `evaluate_heat`).
    """
    heat = Heat()
    if tested is None and (folder / NAME).is_file():
        heat.tests = read_heat_tests(folder / NAME)
    if tested == 0 or not asked:
        return heat
    path = model or Path(results[0].metrics_json["model"]["path"])
    heat.note = _why_not(path, results)
    if heat.note:
        return heat
    opened, processor = load_vision_language_model(path)
    layers, drawn = list(opened.gate_openings()), asked[: min(tested or MAPS, MAPS)]
    progress = ProgressLine("heat maps", "images")
    for number, one in enumerate(drawn, start=1):
        heat.maps.append(draw(opened, processor, one.read(), layers))
        progress(number, len(drawn))
    if tested:
        some = asked[:tested]
        heat.tests = measure_heat(opened, processor, (one.read() for one in some), layers=layers, total=len(some))
        write_heat_tests(folder / NAME, heat.tests)
    return heat


def _why_not(path: Path, results: Sequence[Results]) -> str:
    if not path.is_dir():
        return f"Heat maps need the model, and {path} is no longer there; `arlow report --model FOLDER` names it."
    if hash_model(path) != results[0].metrics_json["model"]["sha256"]:
        return f"Heat maps are not drawn: {path} is not the model that was evaluated."
    return ""


def draw(model: Any, processor: Any, asked: AskedImage, layers: Sequence[int]) -> tuple[str, str]:
    """Returns the heat map of an image as a data URI, with the text that the model wrote about it."""
    how = {"layers": layers, "max_new_tokens": asked.max_new_tokens}
    words, views = explain_image(model, processor, asked.image, asked.messages, **how)
    text = " ".join(word.word for word in words)
    return shortest_uri(draw_explanation(asked.image, views, words, title=text)), text


def plot_test(test: HeatTest) -> dict[str, Any]:
    """Plots the curves of one layer, for the template, and lists their figures."""
    curves = [
        Curve(NAMES[order], order, [(100 * share, of.estimate) for share, of in zip(SHARES, falls, strict=True)])
        for order, falls in test.falls.items()
    ]
    plot: Plot = plot_curves(curves, label=f"layer {test.layer}: fall of log-probability by share hidden")
    rows = [(NAMES[order], [_cell(of) for of in test.falls[order]]) for order in ORDERS]
    over = [("random", test.over_random), ("the least attended", test.over_least)]
    return {
        "layer": test.layer,
        "plot": plot,
        "names": [(curve.name, curve.style) for curve in curves],
        "rows": rows,
        "over": [(name, _cell(of, is_signed=True), of.is_outside_zero) for name, of in over],
    }


def _cell(of: Interval, *, is_signed: bool = False) -> tuple[str, str]:
    estimate, low, high = (format_number(value, 2, is_signed=is_signed) for value in (of.estimate, of.low, of.high))
    return estimate, f"[{low}, {high}]"
