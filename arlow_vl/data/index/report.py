"""Reports on indexed data for people: the number of samples used, and those left out by reason."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from arlow_vl.data.bad_share import MAX_BAD_FRACTION, BadTexts, format_reasons, refuse_bad_share, refuse_bad_texts
from arlow_vl.data.index.header import Header, LeftOut, bad_samples
from arlow_vl.data.index.reading import Index
from arlow_vl.data.samples import TASKS, TextTask
from arlow_vl.data.shard_faults import ShardFault
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, visible

FAULTS_SHOWN = 5


def left_out(headers: Iterable[Header]) -> dict[str, LeftOut]:
    """Returns the samples that are not used, by reason, each with the first example."""
    return _added(header.bad for header in headers)


def texts_left_out(headers: Iterable[Header]) -> dict[str, LeftOut]:
    """Returns the texts of used samples that are not used, by reason, each with the first example."""
    return _added(bad for header in headers for bad in header.bad_texts.values())


def _added(parts: Iterable[dict[str, LeftOut]]) -> dict[str, LeftOut]:
    total: dict[str, LeftOut] = {}
    for part in parts:
        for reason, (count, example) in part.items():
            before = total.get(reason, LeftOut(0, example))
            total[reason] = LeftOut(before.count + count, before.example)
    return total


def faults_of(indexes: Sequence[Index]) -> list[ShardFault]:
    return [fault for index in indexes for fault in index.header.faults]


def summary(indexes: Sequence[Index]) -> str:
    """Returns `9,871 used, 129 skipped (empty_text 128, image_unreadable 1), 2 texts skipped (...), 1 fault`."""
    headers = [index.header for index in indexes]
    bad, texts, faults = left_out(headers), texts_left_out(headers), len(faults_of(indexes))
    parts = [f"{sum(map(len, indexes)):,} used", f"{_total(bad):,} skipped{_in_brackets(bad)}"]
    if texts:
        parts.append(f"{number_of(_total(texts), 'text')} skipped{_in_brackets(texts)}")
    return ", ".join([*parts, number_of(faults, "fault")])


def report_lines(indexes: Sequence[Index], most: int) -> Iterable[str]:
    """Yields the summary, then a line for each fault and, up to `most`, for each bad sample or text."""
    yield summary(indexes)
    for fault in faults_of(indexes):
        yield f"{fault.shard}: {fault.reason}"
    everything = (bad for index in indexes for bad in bad_samples(index.folder, index.header))
    for bad in islice(everything, most):
        yield f"{bad['name']}: {bad['reason']}{bad['detail']}"
    if more := sum(1 for _ in everything):
        yield f"... and {more:,} more; the indexes' bad-*.jsonl name them all"


def refuse_nothing(indexes: Sequence[Index], where: str) -> None:
    """Raises DataError, with the reasons, if no sample is usable."""
    if any(map(len, indexes)):
        return
    bad, faults = left_out(index.header for index in indexes), faults_of(indexes)
    if not bad:
        reason = f"no sample can be used: {visible(faults[0].reason)}" if faults else "holds no sample; name other data"
        raise DataError(f"{visible(where)}: {reason}")
    counts = Counter({reason: one.count for reason, one in bad.items()})
    reasons = format_reasons(counts, {reason: one.example for reason, one in bad.items()})
    advice = "; images (--images) names the folder that image paths start from" if "missing_image_file" in bad else ""
    raise DataError(f"{visible(where)}: none of {number_of(_total(bad), 'sample')} can be used: {reasons}{advice}")


def check_left_out(
    indexes: Sequence[Index],
    max_bad_fraction: float = MAX_BAD_FRACTION,
    *,
    where: str,
    tasks: Sequence[TextTask] = TASKS,
) -> None:
    """Raises DataError if no sample is usable, or too large a share of samples or of texts of these tasks is not."""
    headers = [index.header for index in indexes]
    bad = left_out(headers)
    for fault in faults_of(indexes):
        if fault.missing:
            before = bad.get("behind_a_shard_fault", LeftOut(0, f"{fault.shard}: {fault.reason}"))
            bad["behind_a_shard_fault"] = LeftOut(before.count + fault.missing, before.example)
    counts = Counter({reason: one.count for reason, one in bad.items()})
    examples = {reason: one.example for reason, one in bad.items()}
    shown = f"{visible(where)}: "
    refuse_bad_share("samples", sum(map(len, indexes)), counts, examples, max_bad_fraction, where=shown)
    used = {task: sum(header.totals[task] for header in headers) for task in tasks}
    texts = [
        BadTexts(task, reason, *one)
        for header in headers
        for task in tasks
        for reason, one in header.bad_texts.get(task, {}).items()
    ]
    questions = used.pop("question", 0)
    refuse_bad_texts(questions, sum(used.values()), texts, max_bad_fraction, where=shown)
    refuse_nothing(indexes, where)


def report_left_out(where: str, indexes: Sequence[Index]) -> str | None:
    """Returns one line on everything that is left out, with examples; None: nothing is."""
    headers, parts = [index.header for index in indexes], []
    for what, lost in (("skipped", left_out(headers)), ("texts skipped", texts_left_out(headers))):
        if lost:
            counts = Counter({reason: one.count for reason, one in lost.items()})
            parts.append(f"{what}: {format_reasons(counts, {reason: one.example for reason, one in lost.items()})}")
    faults = faults_of(indexes)
    parts += [f"{visible(fault.shard)}: {visible(fault.reason)}" for fault in faults[:FAULTS_SHOWN]]
    parts += [f"{number_of(len(faults) - FAULTS_SHOWN, 'fault')} more"] if len(faults) > FAULTS_SHOWN else []
    return "; ".join([f"{visible(where)}: {summary(indexes)}", *parts]) if parts else None


def _total(lost: dict[str, LeftOut]) -> int:
    return sum(one.count for one in lost.values())


def _in_brackets(lost: dict[str, LeftOut]) -> str:
    ordered = sorted(lost.items(), key=lambda item: -item[1].count)
    return visible(f" ({', '.join(f'{reason} {one.count:,}' for reason, one in ordered)})" if lost else "")
