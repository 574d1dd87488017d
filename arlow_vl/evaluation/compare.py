"""Compares two result folders of the same tasks, sample by sample, and tells how many images a comparison needs.

captions-test-known, second minus first
metric               images  first  second  second minus first         bootstrap p  t-test p  effect
CIDEr-D, 10 at most  146     1.204  1.391   +0.187 [+0.051, +0.320] *  0.008        0.006     +0.23
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from arlow_vl.errors import DataError
from arlow_vl.evaluation import bootstrap
from arlow_vl.evaluation.metrics import registry
from arlow_vl.evaluation.metrics.sums import Values
from arlow_vl.evaluation.numbers import (
    few_note,
    format_count,
    format_interval,
    format_number,
    legend,
    plurals,
    scale_of,
)
from arlow_vl.evaluation.paired import (
    PairedTest,
    is_scored,
    jackknife_values,
    number_images,
    paired_test,
    sums_by_image,
)
from arlow_vl.evaluation.power import detectable_difference, required_images, spread_of
from arlow_vl.evaluation.tasks.measures import Measure, measure, titled
from arlow_vl.evaluation.tasks.predictions import MODEL
from arlow_vl.evaluation.tasks.results import Results, read_results, refuse_changed
from arlow_vl.evaluation.tasks.scoring import ALL, fields_of_difference, groups_of
from arlow_vl.evaluation.tasks.table import aligned, shown_in
from arlow_vl.printing import number_of, visible

OTHER_TOKENS = "the models have other tokenizers, and perplexity is of their tokens: compare bits per byte"


@dataclass(frozen=True)
class Comparison:
    """One metric of one task: the second folder's model minus the first's."""

    task: str
    metric: str
    first: float
    second: float
    test: PairedTest
    asked_otherwise: tuple[str, ...] = ()
    """Keys of the task, of those that decide what a model is asked, on which the two results differ."""
    shown: str = "image"
    """Unit that is resampled and counted (`table.shown_in`)."""
    is_share: bool = False
    """True: printed in per cent, as `arlow evaluate` does."""
    is_of_other_tokens: bool = False
    """True for perplexities over the tokens of two tokenizers: no test can compare them."""


@dataclass(frozen=True)
class Power:
    """Power analysis of one metric of one task."""

    task: str
    metric: str
    images: int
    spread: float
    """Standard deviation over images of the difference."""
    required: int | None
    """Images needed to detect the given difference; None: the metric cannot differ by so much, or the spread is 0."""
    detectable: float
    """The smallest difference that the evaluated images can detect."""
    shown: str = "image"
    """As in `Comparison`."""
    is_of_other_tokens: bool = False
    """As in `Comparison`."""


def compare_folders(first: Path, second: Path, *, task: str | None = None) -> list[Comparison]:
    """Compares all tasks, or one of them, in every metric.

    Raises:
        DataError: the folders differ in tasks, samples or references, or a file is broken.
        ValueError: a folder holds no predictions, or a task too few images.
    """
    found = []
    for name, pair in read_pairs(first, second, task).items():
        measures, (ours, theirs) = sums_of_models(pair)
        resampled = resampled_differences(measures, ours, theirs)
        for label, of in measures.items():
            one, other = ours[label], theirs[label]
            before, after = (float(of.metric.value(sums.sum(axis=0))) for sums in (one, other))
            test = paired_test(other, one, of.metric.value, resampled[label])
            how = asked_otherwise(*pair), shown_in(pair[0].metrics_json), of.metric.is_share
            found.append(Comparison(name, label, before, after, test, *how, is_of_other_tokens(of, pair)))
    return found


def resampled_differences(
    measures: Mapping[str, Measure], ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns their value minus ours on each resample, by label."""

    def differences(weights: np.ndarray) -> dict[str, Values]:
        pairs = (
            (label, of.metric.value, weights @ ours[label], weights @ theirs[label]) for label, of in measures.items()
        )
        return {label: value(other) - value(one) for label, value, one, other in pairs}

    return bootstrap.resample(len(next(iter(ours.values()))), differences)


def power_of_folders(
    first: Path, second: Path | None, *, difference: float, power: float, task: str | None = None
) -> list[Power]:
    """Estimates how many images it takes to detect a difference, for each metric of each task.

    With two folders the spread is that of their measured difference. With one, a second model with independent errors
    is assumed, which overstates what two models on the same images need.

    Raises:
        As `compare_folders` and `power.required_images`; ValueError: no metric can differ by so much.
    """
    required_images(difference, 1.0, power=power)  # refuses before anything is read
    found, largest = [], 0.0
    for name, results in read_pairs(first, second, task).items():
        measures, sums = sums_of_models(results)
        shown = shown_in(results[0].metrics_json)
        for label, of in measures.items():
            metric = of.metric
            most = math.inf if metric.most is None else metric.most
            largest = max(largest, most)
            rows = [of_model[label] for of_model in sums]
            is_any = np.any([is_scored(row, metric.value) for row in rows], axis=0)
            values = [jackknife_values(row[is_any], metric.value) for row in rows]
            if len(values[0]) < 2:
                raise ValueError(f"{name}, {label}: a spread needs two {shown}s at least; evaluate more")
            spread = spread_of(values[1] - values[0]) if second else math.sqrt(2) * spread_of(values[0])
            is_possible = difference <= most and spread > 0
            needs = required_images(difference, spread, power=power) if is_possible else None
            seen = detectable_difference(len(values[0]), spread, power=power)
            how = shown, is_of_other_tokens(of, results)
            found.append(Power(name, label, len(values[0]), spread, needs, seen, *how))
    if difference > largest:
        raise ValueError(
            f"no metric here can differ by {difference:g}, {largest:g} is the most; "
            "shares go from 0 to 1, so 0.02 is two percentage points"
        )
    return found


def read_pairs(first: Path, second: Path | None, task: str | None) -> dict[str, list[Results]]:
    """Returns each task's results in the first and, if given, the second folder, by name, samples in one order.

    Raises:
        DataError: the folders differ in tasks, or in the samples or references of one.
    """
    folders = [first] if second is None else [first, second]
    tasks = [{one.task.name: one for one in read_results(folder)} for folder in folders]
    for results in (one for of in tasks for one in of.values() if task in (None, one.task.name)):
        refuse_changed(results)
    if task is not None:
        for folder, of in zip(folders, tasks, strict=True):
            if task not in of:
                raise DataError(f"{folder} holds no task {visible(task)}; it holds {visible(', '.join(of))}")
        tasks = [{task: of[task]} for of in tasks]
    for name in tasks[0].keys() ^ tasks[-1].keys():
        owner, other = (first, second) if name in tasks[0] else (second, first)
        raise DataError(
            f"{owner} holds the task {visible(name)} and {other} does not; compare one that both hold with --task NAME"
        )
    for name in tasks[0] if second is not None else ():
        tasks[1][name] = in_order(tasks[0][name], tasks[1][name], first, second)
    return {name: [of[name] for of in tasks] for name in tasks[0]}


def in_order(first: Results, second: Results, *folders: Path | None) -> Results:
    """Returns the second results with the rows in the first's order, and the metrics and groups of the first's task.

    Raises:
        DataError: the two differ in the kind of task, the samples, or what was asked about one.
    """
    where = f"{folders[0]} and {folders[1]}, task {visible(first.task.name)}:"
    if first.task.kind != second.task.kind:
        kinds = f"one is of kind {first.task.kind}, the other {second.task.kind}"
        raise DataError(f"{where} {kinds}; compare results of one task")
    ours, theirs = ({row.id: row for row in one.systems[MODEL]} for one in (first, second))
    if differing := sorted(ours.keys() ^ theirs.keys()):
        raise DataError(
            f"{where} one alone holds {number_of(len(differing), 'sample')}, the first is {visible(differing[0])}; "
            "evaluate both models on the same samples"
        )
    for id_, row in ours.items():
        if row.references != theirs[id_].references:
            raise DataError(f"{where} sample {visible(id_)} has other references; evaluate both on the same data")
        if row.asked != theirs[id_].asked:
            raise DataError(
                f"{where} sample {visible(id_)} has another image, question or kind; evaluate both on the same data"
            )
    task = replace(second.task, metrics=first.task.metrics, groups=first.task.groups)
    return replace(second, task=task, systems={MODEL: [theirs[id_] for id_ in ours]})


def asked_otherwise(first: Results, second: Results) -> tuple[str, ...]:
    """Returns the keys of the task that may differ between compared models, and do; the comparison names them."""
    keys = "instruction", "decoding", "likelihood", "perplexity"
    return tuple(key for key in keys if getattr(first.task, key) != getattr(second.task, key))


def is_of_other_tokens(of: Measure, results: Sequence[Results]) -> bool:
    """True for the perplexity of models that cut a document into different numbers of tokens."""
    first, *others = ([row.tokens for row in one.systems[MODEL]] for one in results)
    return of.metric is registry.METRICS["perplexity"] and any(tokens != first for tokens in others)


def sums_of_models(results: Sequence[Results]) -> tuple[dict[str, Measure], list[dict[str, np.ndarray]]]:
    """Returns the measures by title, of all samples and of each group, and each model's sums by image.

    A measure that only one of several images has a sample of cannot be tested and is left out.
    """
    groups = groups_of(results[0].task, results[0].systems)
    measures: dict[str, Measure] = {}
    found = []
    for one in results:
        rows, sums = one.systems[MODEL], {}
        images = number_images([row.image for row in rows])
        for title, of in measure(one.task.metrics, rows).items():
            for group, mask in groups.items():
                label = title if group == ALL else f"{title}, {group}"
                of_images = sums_by_image(of.statistics, images, mask)
                if is_scored(of_images, of.metric.value).sum() >= min(2, len(of_images)):
                    measures[label], sums[label] = of, of_images
        found.append(sums)
    return measures, found


def format_comparisons(found: Sequence[Comparison], first: Path, second: Path) -> str:
    """Formats a table for each task."""
    blocks = [f"first: {visible(str(first))}\nsecond: {visible(str(second))}"]
    for task in dict.fromkeys(comparison.task for comparison in found):
        of_task = [comparison for comparison in found if comparison.task == task]
        shown = plurals(one.shown for one in of_task)
        lines = [["metric", shown, "first", "second", "second minus first", "bootstrap p", "t-test p", "effect"]]
        for one in of_task:
            test, (scale, digits) = one.test, scale_of(is_percent=one.is_share)
            numbers = [format_number(scale * value, digits) for value in (one.first, one.second)]
            tests = [format_p(p) for p in (test.bootstrap_p, test.t_test_p)]
            tests.append(format_number(test.effect, 2, is_signed=True))
            interval = fields_of_difference(test.difference)
            difference = format_interval(interval, is_percent=one.is_share, is_difference=True)
            if one.is_of_other_tokens:
                difference, tests = difference.removesuffix(" *"), ["-"] * len(tests)
            title = visible(titled(one.metric, is_share=one.is_share))
            lines.append([title, format_count(test.images, test.images), *numbers, difference, *tests])
        few = few_note((one.test.images for one in of_task), shown)
        changes = ", ".join(of_task[0].asked_otherwise)
        note = f"the second was asked with another {changes}, which may account for a part of the difference"
        otherwise = [note] if changes else []
        if any(one.is_of_other_tokens for one in of_task):
            otherwise.append(OTHER_TOKENS)
        blocks.append("\n".join([visible(task), *otherwise, *aligned(lines), *few]))
    return "\n\n".join([*blocks, legend(one.shown for one in found)])


def format_p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def format_power(found: Sequence[Power], *, difference: float, power: float) -> str:
    """Formats one table of all tasks, and a note on how to read it."""
    shown = plurals(one.shown for one in found)
    lines = [["task", "metric", shown, "spread", f"{shown} for {difference:g}", "smallest detectable"]]
    for one in found:
        required = "-" if one.required is None else f"{one.required:,}"
        detectable = f"{one.detectable:.3g}" if one.spread > 0 else "-"
        numbers = [format_number(one.spread, 3), required, detectable]
        if one.is_of_other_tokens:
            numbers = ["-"] * len(numbers)
        lines.append([visible(one.task), visible(one.metric), format_count(one.images, one.images), *numbers])
    note = f"At a power of {power:.0%} and p below {1 - bootstrap.LEVEL:.2g}, by the paired t-test over {shown}."
    few = few_note((one.images for one in found), shown)
    none = [f"-: the metric has no such difference, or nothing differs over these {shown}"]
    without_share = none if any(one.required is None for one in found) else []
    if any(one.is_of_other_tokens for one in found):
        without_share = [*without_share, f"-: {OTHER_TOKENS}"]
    return "\n".join([*aligned(lines), *few, *without_share, "", note])
