"""report.html: one page without scripts or links, with the images inside, made from a result folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from arlow_vl.evaluation.numbers import FEWEST, format_interval, format_number, is_outside_zero, plurals
from arlow_vl.evaluation.origins import runs_of
from arlow_vl.evaluation.report.charts import gate_bar, interval_bar
from arlow_vl.evaluation.report.curves import plot_run
from arlow_vl.evaluation.report.facts import facts_of
from arlow_vl.evaluation.report.frozen import read_checks
from arlow_vl.evaluation.report.heat import CHOICE_TOKENS, MAPS, HeatSample, look_at_heat, plot_test
from arlow_vl.evaluation.report.material import Material, find_material, image_uris
from arlow_vl.evaluation.report.samples import Scored, choose, confusions, score_samples, unpicked
from arlow_vl.evaluation.tasks import predictions
from arlow_vl.evaluation.tasks.measures import titled
from arlow_vl.evaluation.tasks.predictions import MODEL
from arlow_vl.evaluation.tasks.results import Results, broken, read_results, refuse_changed
from arlow_vl.evaluation.tasks.scoring import ALL
from arlow_vl.evaluation.tasks.table import TITLES, images_of, shown_in
from arlow_vl.pages import page_environment
from arlow_vl.printing import number_of, visible
from vision.whole_files import write_whole

NAME, TEMPLATE = "report.html", "page.html"


def write_report(folder: Path, output: Path, *, model: Path | None = None, tested: int | None = None) -> None:
    """Writes the page of all tasks of a result folder.

    `model` is where the evaluated model lies now; `tested` is how many images heat maps are tested on (see
    `look_at_heat`).

    Raises:
        DataError: the folder holds no results, or a part of them is missing or broken.
    """
    results = read_results(folder)
    for one in results:
        refuse_changed(one)
    seeing = [one for one in results if one.task.kind != "text"]
    probed = MAPS if tested is None else tested
    sections, asked = [], []
    for one in results:
        try:
            section, probes = show_task(one, probed)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise broken(one.folder / predictions.METRICS, repr(error)) from None
        sections.append(section)
        asked.append(probes)
    heat = look_at_heat(folder, seeing, take_turns(asked), model=model, tested=tested)
    where = model or Path(results[0].metrics_json["model"]["path"])
    page = (
        page_environment(Path(__file__).parent, finalize=shown)
        .get_template(TEMPLATE)
        .render(
            sections=sections,
            models={
                metrics["model"]["sha256"]: metrics["model"]["path"]
                for metrics in (one.metrics_json for one in results)
            },
            plots=[plot for plot in map(plot_run, runs_of(where)) if plot],
            gates=next((section["gates"] for section in sections if section["gates"]), []),
            checks=read_checks(folder),
            heat=heat,
            heat_plots=[plot_test(test) for test in heat.tests],
            folder=folder,
            fewest=FEWEST,
            resampled=plurals(shown_in(one.metrics_json) for one in results),
            number_of=number_of,
        )
    )
    write_whole(output, page)


def shown(value: Any) -> Any:
    """Texts without characters that act: of text direction, of control, halves of characters."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@dataclass(frozen=True)
class ShownGroup:
    """A metric's scores of some items."""

    items: int
    images: int
    rows: list[dict[str, Any]]
    """The model's (`metric_rows`), then those of the controls."""


@dataclass(frozen=True)
class ShownMetric:
    """A metric's scores of all items and of each group."""

    name: str
    title: str
    unit: str
    groups: dict[str, ShownGroup]


def shown_metric(name: str, of: Mapping[str, Any]) -> ShownMetric:
    """Returns what the page shows of a metric in metrics.json."""
    is_share = of["is_share"]
    groups = {
        group: ShownGroup(scores["items"], images_of(scores), metric_rows(scores, is_percent=is_share))
        for group, scores in of["groups"].items()
    }
    return ShownMetric(name, titled(name, is_share=is_share), "%" if is_share else "", groups)


def show_task(results: Results, probed: int) -> tuple[dict[str, Any], list[HeatSample]]:
    """Returns what the page shows of a task, and the samples whose heat is tested."""
    metrics, task = results.metrics_json, results.task
    scores = metrics["scores"]
    measured = [shown_metric(name, of) for name, of in scores["metrics"].items()]
    of_systems = measured[0].groups[ALL].rows
    controls = sorted(of_systems[1:], key=lambda row: row["value"], reverse=True)
    controls[1:] = [row for row in controls[1:] if row["system"] == "shuffled"]
    section: dict[str, Any] = {
        "name": task.name,
        "title": task.title,
        "kind": task.kind,
        "shown": shown_in(metrics),
        "facts": facts_of(results),
        "command": metrics.get("command"),
        "gates": gate_bars(metrics.get("gates", {})),
        "overlap": metrics["overlap"].get("items", 0),
        "not_checked": metrics["overlap"].get("not_checked", []),
        "asked_otherwise": metrics.get("asked_otherwise", ""),
        "scores": scores,
        "metrics": measured,
        "headline": {"metric": measured[0], "model": of_systems[0], "controls": controls},
        "level": f"{scores['level']:.0%}",
        "sheets": [],
        "confusions": confusions(results.systems[MODEL]) if task.kind == "question" else [],
        "material": Material(),
    }
    if task.kind == "text":
        return section, []
    scored = score_samples(results)
    rows, sheets = results.systems[MODEL], choose(results, scored)
    probes = unpicked(rows, probed)
    wanted = {place for sheet in sheets for place in sheet.places} | set(probes)
    material = section["material"] = find_material(results, {rows[place].id for place in wanted})
    section["sheets"] = [
        {"title": sheet.title, "cards": [card(results, scored, place, material) for place in sheet.places]}
        for sheet in sheets
    ]
    tokens = task.decoding.max_new_tokens if task.decoding else CHOICE_TOKENS
    found = [material.items[rows[place].id] for place in probes if rows[place].id in material.items]
    return section, [HeatSample(item, tokens) for item in found if len(item.images) == 1]


def card(results: Results, scored: Scored, place: int, material: Material) -> dict[str, Any]:
    """A sample with its image, what everybody said of it, and how the model's words score."""
    row = results.systems[MODEL][place]
    item = material.items.get(row.id)
    images, missing = image_uris(item) if item else ([], material.missing or "The data no longer hold this image.")
    point = float(scored.points[place])
    return {
        "row": row,
        "images": images,
        "missing": "" if material.missing else missing,
        "controls": [
            (TITLES.get(system, system), rows[place].output)
            for system, rows in results.systems.items()
            if system != MODEL
        ],
        "verdict": ("right" if point >= 1 else "wrong" if point == 0 else "partly") if scored.is_share else "",
        "score": f"{titled(scored.title, is_share=False)}: {format_number(point, 2)}",
        "log_probability": None if row.log_probability is None else format_number(row.log_probability, 1),
    }


def take_turns(asked: Sequence[Sequence[HeatSample]]) -> list[HeatSample]:
    """The tasks' first samples, then their second ones, and so on."""
    longest = max(map(len, asked), default=0)
    return [of[turn] for turn in range(longest) for of in asked if turn < len(of)]


def metric_rows(group: Mapping[str, Any], *, is_percent: bool) -> list[dict[str, Any]]:
    """A row a system: its bar, its interval, and what the model has over it."""
    largest = 1.0 if is_percent else max(interval["high"] for interval in group["systems"].values())
    rows = []
    for system, interval in group["systems"].items():
        text, title = format_interval(interval, is_percent=is_percent), TITLES.get(system, system)
        difference = group["differences"].get(system)
        rows.append(
            {
                "title": title,
                "system": system,
                "value": -math.inf if math.isnan(interval["estimate"]) else float(interval["estimate"]),
                "is_model": system == MODEL,
                "bar": interval_bar(interval, largest=largest, label=f"{title}: {text}"),
                "estimate": text.split()[0],
                "interval": text.split(maxsplit=1)[1],
                "difference": difference
                and format_interval(difference, is_percent=is_percent, is_difference=True).removesuffix(" *"),
                "is_outside": bool(difference and is_outside_zero(difference)),
            }
        )
    return rows


def gate_bars(gates: Mapping[str, float | int]) -> list[dict[str, Any]]:
    largest = max(map(abs, gates.values()), default=0)
    return [
        {"name": name, "value": format_number(value, 3, is_signed=True), "bar": gate_bar(value, largest=largest)}
        for name, value in gates.items()
    ]
