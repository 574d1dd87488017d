"""Draws learning curves of the runs that produced an evaluated model, if their files lie beside it."""

import csv
from pathlib import Path
from typing import Any

from arlow_vl.errors import DataError
from arlow_vl.evaluation.origins import METRICS
from arlow_vl.evaluation.report.charts import Curve, Plot, is_drawable, plot_curves
from arlow_vl.printing import visible

LOSSES = ("train", "validation")


def plot_run(run: Path) -> dict[str, Any] | None:
    """Plots the losses of a run, for the template; None if there are none. Raises DataError for a broken file."""
    if not (run / METRICS).is_file():
        return None
    columns = read_losses(run / METRICS)
    finite = {name: [(x, y) for x, y in points if is_drawable(y)] for name, points in columns.items()}
    curves = [Curve(name, name, points) for name, points in finite.items() if points]
    if not curves:
        return None
    label = "; ".join(f"{c.name} loss from {c.points[0][1]:.3f} to {c.points[-1][1]:.3f}" for c in curves)
    plot: Plot = plot_curves(curves, label=label)
    last = {c.name: f"{c.points[-1][1]:.3f}" for c in curves if c.name == "validation"}
    return {"title": str(run), "plot": plot, "names": [c.name for c in curves], "last": last}


def read_losses(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Reads training and validation loss by step. Raises DataError for a broken file."""
    columns: dict[str, list[tuple[float, float]]] = {name: [] for name in LOSSES}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, points in columns.items():
                    if row.get(f"{name}_loss"):
                        points.append((float(row["step"]), float(row[f"{name}_loss"])))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{visible(str(path))}: no metrics of a run ({visible(str(error))}); restore it, or move it away"
        ) from None
    return columns
