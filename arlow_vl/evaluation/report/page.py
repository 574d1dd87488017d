"""report.html: one page without scripts or links, with the images inside, made from a result folder."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from arlow_vl.data.shards import scan_shards
from arlow_vl.errors import DataError
from arlow_vl.evaluation.report.charts import Curve, Plot, gate_bar, interval_bar, plot_curves
from arlow_vl.evaluation.report.contact_sheet import ImageOf, caption_sheet, question_sheet
from arlow_vl.evaluation.report.meta import read_meta
from arlow_vl.evaluation.results import CONTROLS, MODEL, Task, read_tasks
from arlow_vl.evaluation.scores import (
    describe_empty,
    describe_task,
    format_interval,
    format_number,
    is_outside_zero,
    metric_title,
    score_results,
    system_title,
)
from vision.whole_files import write_whole

TEMPLATE = "page.html"
HUGE = 1e30
HEXADECIMAL = re.compile(r"[+-]?0x[0-9a-f]+(\.[0-9a-f]*)?(p[+-]?[0-9]{1,3})?", re.IGNORECASE)


def write_report(folder: Path, output: Path, *, image_of: ImageOf) -> dict[str, Any]:
    """Scores the folder, writes the page and returns the scores. `image_of` gives a sample's image file by its key.

    Of meta.json it shows, each if there: title, summary, checkpoint {path, sha256}, decode {setting: value}, data
    [{name, license, use}], versions {name: version}, wall_seconds {what: seconds}, hardware (a sentence), reproduce
    [command], gates {name: tanh of the gate}, curves [{title, run | train and validation [[step, loss]],
    unigram_entropy}] where run is a run folder, seen from the result folder. All texts may hold markup; none acts.

    Raises:
        ValueError: there is nothing to score, or a control is missing.
        DataError: a file or an image is broken.
    """
    scores = score_results(folder)
    meta = read_meta(folder / "meta.json")
    sections = [section(task, scores["tasks"][task.name], image_of) for task in read_tasks(folder)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = format_duration
    page = environment.get_template(TEMPLATE).render(
        meta=meta,
        level=f"{scores['level']:.0%}",
        resamples=scores["resamples"],
        sections=sections,
        plots=[plot_run(curve, folder) for curve in meta["curves"]],
        gates=gate_bars(meta["gates"]),
        proofs=read_proofs(scores.get("text", {})),
    )
    write_whole(output, page)
    return scores


def images_in_shards(shards: Sequence[str | Path]) -> ImageOf:
    """Finds images by key in WebDataset shards. Raises DataError for shards that are missing or hold no sample."""
    samples = {sample.key: sample for sample in scan_shards(shards).samples}

    def image_of(key: str) -> bytes:
        if key not in samples:
            raise DataError(f"image {key!r} is in none of the {len(shards)} shards; name those it was evaluated on")
        return samples[key].read_image()

    return image_of


def section(task: Task, scores: Mapping[str, Any], image_of: ImageOf) -> dict[str, Any]:
    """What the page shows of a task."""
    is_questions = task.kind == "questions"
    metrics = {name: metric_rows(metric, is_percent=is_questions) for name, metric in scores["metrics"].items()}
    # All questions before any kind of them; and the strongest control, so that nobody has to look for it.
    shown, *rest = metrics
    controls = [row for row in metrics[shown] if row["system"] in CONTROLS[task.kind]]
    controls.sort(key=lambda row: float(row["estimate"]), reverse=True)
    return {
        "kind": task.kind,
        "title": scores["title"],
        "description": describe_task(scores),
        "empty": describe_empty(scores),
        "metric_titles": {name: metric_title(name, is_percent=is_questions) for name in metrics},
        "samples": scores["samples"],
        "different": scores["different_predictions"],
        "metrics": metrics,
        "headline": {
            "metric": "accuracy, all questions" if is_questions else metric_title(shown, is_percent=False),
            "model": metrics[shown][0],
            "kinds": [(name, metrics[name][0]["estimate"]) for name in rest] if is_questions else [],
            "controls": controls[:1] + [r for r in controls[1:] if r["system"] == "shuffled"],
        },
        "sheet": question_sheet(task, image_of, rule=scores["rule"]) if is_questions else caption_sheet(task, image_of),
    }


def metric_rows(metric: Mapping[str, Any], *, is_percent: bool) -> list[dict[str, Any]]:
    """A row a system: its bar, its interval, and what the model has over it."""
    largest = 1.0 if is_percent else max(interval["high"] for interval in metric["systems"].values())
    rows = []
    for system, interval in metric["systems"].items():
        text = format_interval(interval, is_percent=is_percent)
        difference = metric["differences"].get(system)
        rows.append(
            {
                "title": system_title(system),
                "system": system,
                "is_model": system == MODEL,
                "bar": interval_bar(interval, largest=largest, label=f"{system_title(system)}: {text}"),
                "estimate": text.split()[0],
                "interval": text.split(maxsplit=1)[1],
                "difference": difference
                and format_interval(difference, is_percent=is_percent, is_difference=True).removesuffix(" *"),
                "is_outside": bool(difference and is_outside_zero(difference)),
            }
        )
    return rows


def plot_run(curve: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The learning curve of a stage, from the lists given or from the metrics.csv of its run folder."""
    columns = read_metrics(folder / curve["run"] / "metrics.csv") if "run" in curve else curve
    finite = {
        name: [(float(x), float(y)) for x, y in columns.get(name, ()) if is_drawable(x) and is_drawable(y)]
        for name in ("train", "validation")
    }
    curves = [Curve(name, name, points) for name, points in finite.items() if points]
    if not curves:
        raise DataError(f"{folder / 'meta.json'}: curve {curve.get('title')!r} has no points; give train or validation")
    entropy = curve.get("unigram_entropy")
    if entropy is not None and not is_drawable(entropy):
        entropy = None
    plot: Plot = plot_curves(
        curves,
        label="; ".join(f"{c.name} loss from {c.points[0][1]:.3f} to {c.points[-1][1]:.3f}" for c in curves),
        reference=None if entropy is None else (f"unigram entropy {entropy:.2f}", float(entropy)),
    )
    last = {c.name: f"{c.points[-1][1]:.3f}" for c in curves if c.name == "validation"}
    return {"title": curve.get("title", "loss"), "plot": plot, "names": [c.name for c in curves], "last": last}


def is_drawable(number: float | int) -> bool:
    """False for NaN, the infinities and numbers beside which every other vanishes."""
    return abs(number) < HUGE


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Training and validation loss by step, of a run folder's metrics.csv."""
    columns: dict[str, list[tuple[int, float]]] = {"train": [], "validation": []}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, points in columns.items():
                    if row.get(f"{name}_loss"):
                        points.append((int(row["step"]), float(row[f"{name}_loss"])))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: the curve's metrics cannot be read ({error}); correct `run` in meta.json") from error
    return columns


def gate_bars(gates: Mapping[str, float | int]) -> list[dict[str, Any]]:
    largest = max(map(abs, gates.values()), default=0)
    return [
        {"name": name, "value": format_number(value, 3, is_signed=True), "bar": gate_bar(value, largest=largest)}
        for name, value in gates.items()
    ]


def read_proofs(text: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A comparison for each pair NAME_before, NAME_after of text.json; hexadecimal floats get their decimals."""
    proofs = []
    for name in (key.removesuffix("_before") for key in text if key.endswith("_before")):
        before, after = text[f"{name}_before"], text.get(f"{name}_after")
        proofs.append(
            {
                "name": name.replace("_", " ").replace("sha256", "SHA-256"),
                "before": before,
                "after": after,
                "decimal_before": decimal(before),
                "decimal_after": decimal(after),
                "is_equal": before == after,
            }
        )
    return proofs


def decimal(value: Any) -> str | None:
    """The number that a text in hexadecimal stands for; None for any other value."""
    if not isinstance(value, str) or not HEXADECIMAL.fullmatch(value):
        return None
    return repr(float.fromhex(value))


def format_duration(seconds: float | int) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
