"""report.html of a run folder: one page without scripts or links that shows how the run went."""

import base64
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arlow_vl.evaluation.report
from arlow_vl.evaluation.numbers import format_number
from arlow_vl.evaluation.report.charts import Curve, Plot, is_drawable, plot_curves
from arlow_vl.pages import page_environment
from arlow_vl.printing import number_of
from arlow_vl.training.look_results import SampleLook
from arlow_vl.training.report.folder import STEPS_NAMED, Points, RunFolder, flat, read_run
from vision.whole_files import write_whole

NAME, TEMPLATE = "report.html", "run.html"
LOOKS_SHOWN = 6
"""Texts of each sample, from the first look to the last."""
STYLES = 8
"""Colours of curves; a chart with more curves uses them again."""


def write_run_report(folder: Path, output: Path | None = None) -> Path:
    """Writes the page of a run folder, by default `report.html` in it, and returns its path.

    Raises:
        DataError: a file of the folder is not what a run writes.
    """
    run = read_run(folder)
    environment = page_environment(Path(__file__).parent, *map(Path, arlow_vl.evaluation.report.__path__))
    page = environment.get_template(TEMPLATE).render(
        run=run,
        number_of=number_of,
        title=folder.resolve().name,
        state=state_of(run),
        best=describe_best(run),
        headlines=headlines(run),
        plots=[plot for plot in (chart(*parts) for parts in charts_of(run)) if plot],
        sources=looks_by_source(run),
        left_out=left_out_rows(run),
        quarantined=[
            {"source": source, "reason": reason, "count": len(keys), "examples": keys[:3]}
            for (source, reason), keys in sorted(run.quarantined.items())
        ],
        settings=list(flat(run.config)),
        start=run.starts[-1] if run.starts else {},
    )
    output = output or folder / NAME
    write_whole(output, page)
    return output


def state_of(run: RunFolder) -> str:
    steps = f"{run.step:,} of {number_of(run.config['run']['max_steps'], 'step')}"
    if run.stopped and run.is_finished:
        best = run.stopped["best"]
        return f"ended after {steps}: {best['column']} got no better than {best['value']:.4g} of step {best['step']:,}"
    return f"finished, {steps}" if run.is_finished else f"{steps} so far"


def describe_best(run: RunFolder) -> str:
    """Returns words on what lies in `best`; empty if nothing does."""
    if not run.best:
        return ""
    column, value, step = (run.best[name] for name in ("column", "value", "step"))
    is_kept = run.config["run"].get("watch", {}).get("keep_best") == column
    of_some = "" if is_kept else " of the validations at which run.watch.keep_best named it"
    return f"The best model by {column}{of_some} ({value:.4g}, step {step:,}) lies in"


def headlines(run: RunFolder) -> list[dict[str, str]]:
    """The last value of each validation column, and the medians of speed."""
    found = []
    for name, points in run.columns.items():
        if name.startswith("validation_") and points:
            lowest = min(points, key=lambda point: point[1])
            note = f"lowest {format_number(lowest[1], 4)} at step {lowest[0]:,.0f}"
            found.append({"title": name.replace("_", " "), "value": format_number(points[-1][1], 4), "note": note})
    for name, title, digits, scale in (
        ("tokens_per_second", "tokens a second", 0, 1),
        ("images_per_second", "images a second", 1, 1),
        ("mfu", "of the device's matrix products (MFU), %", 1, 100),
        ("data_wait", "of the time waiting for data, %", 1, 100),
        ("memory_gib", "GiB of memory at most", 2, 1),
    ):
        values = [value for _, value in run.columns.get(name, ()) if is_drawable(value)]
        if values and any(values):
            value = max(values) if name == "memory_gib" else statistics.median(values)
            note = "" if name == "memory_gib" else "median over steps"
            found.append({"title": title, "value": format_number(scale * value, digits), "note": note})
    return found


def charts_of(run: RunFolder) -> list[tuple[str, str, Mapping[str, Points]]]:
    """Title, unit, and curves by name."""
    columns = run.columns

    def some(*names: str, without: str = "") -> dict[str, Points]:
        return {name.removeprefix(without).replace("_", " "): columns[name] for name in names if name in columns}

    others = [name for name in columns if name.startswith("validation_loss_")]
    norms = [name for name in columns if name.startswith("grad_norm")]
    numbers: dict[str, Points] = {}
    for look in run.looks:
        for name, value in look.numbers().items():
            numbers.setdefault(name, []).append((float(look.step), value))

    def of_looks(prefix: str) -> dict[str, Points]:
        return {
            name.removeprefix(prefix).replace("_", " "): points
            for name, points in numbers.items()
            if name.startswith(prefix)
        }

    losses = {name: columns.get(f"{name}_loss", []) for name in ("train", "validation")}
    return [
        ("Loss", "nats a token", losses),
        ("Validation loss by source", "nats a token", some(*others, without="validation_loss_")),
        ("Held-out text", "bits a byte", some("validation_bits_per_byte", without="validation_")),
        ("What a wrong image costs", "nats a token", of_looks("image_use_")),
        ("Different texts among those of a look", "share", of_looks("different_texts_")),
        ("Attention gates", "tanh", of_looks("gate_attention_")),
        ("MLP gates", "tanh", of_looks("gate_mlp_")),
        ("Learning rate", "", some("lr")),
        ("Norm of the gradient", "before it is clipped", some(*norms)),
        ("Tokens a second", "", some("tokens_per_second")),
        ("Images a second", "", {n: p for n, p in some("images_per_second").items() if any(y for _, y in p)}),
        ("MFU", "share of the device's matrix products", some("mfu")),
        ("Waiting for data", "share of the time", some("data_wait")),
        ("Memory", "GiB at most", some("memory_gib")),
    ]


def chart(title: str, unit: str, curves: Mapping[str, Points]) -> dict[str, Any] | None:
    """A chart for the template; None where nothing can be drawn."""
    drawn = []
    for name, points in curves.items():
        finite = [(x, y) for x, y in points if is_drawable(y) and y == y]
        if finite:
            drawn.append(Curve(name, f"c{len(drawn) % STYLES}", finite))
    if not drawn:
        return None
    label = "; ".join(f"{c.name} from {c.points[0][1]:.4g} to {c.points[-1][1]:.4g}" for c in drawn)
    plot: Plot = plot_curves(drawn, label=f"{title}: {label}")
    names = [(curve.name, curve.style, f"{curve.points[-1][1]:.4g}") for curve in drawn]
    return {"title": title, "unit": unit, "plot": plot, "names": names}


def looks_by_source(run: RunFolder) -> list[dict[str, Any]]:
    """By source its samples, each with what was written at some of the steps."""
    by_source: dict[str, dict[str, list[tuple[int, SampleLook]]]] = {}
    for look in run.looks:
        for source in look.sources:
            for sample in source.samples:
                by_source.setdefault(source.name, {}).setdefault(sample.key, []).append((look.step, sample))
    return [
        {"name": name, "samples": [shown_sample(run.folder, looks) for looks in samples.values()]}
        for name, samples in by_source.items()
    ]


def shown_sample(folder: Path, looks: Sequence[tuple[int, SampleLook]]) -> dict[str, Any]:
    last = looks[-1][1]
    return {
        "key": last.key,
        "prompt": last.prompt,
        "reference": last.reference,
        "images": [uri for path in last.images if (uri := image_uri(folder, path))],
        "attention": last.attention and ", ".join(f"{share:.0%}" for share in last.attention),
        "written": [(step, sample.written) for step, sample in spread(looks, LOOKS_SHOWN)],
    }


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """So many of the items at most, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def image_uri(folder: Path, path: str) -> str | None:
    """A JPEG of the run folder as a data URI; None where it is gone, or lies elsewhere."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"


def left_out_rows(run: RunFolder) -> list[dict[str, Any]]:
    return [
        {
            "reason": reason,
            "count": len(lines),
            "steps": [(line["step"], ", ".join(line["keys"][:3])) for line in lines[:STEPS_NAMED]],
        }
        for reason, lines in run.left_out.items()
    ]
