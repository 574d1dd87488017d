"""Limits on the share of unusable data, and the sentences about what is left out: samples, questions, lines."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from arlow_vl.data.samples import TextTask
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, visible

MAX_BAD_FRACTION = 0.1
"""Default limit on the unusable share."""
REASONS_SHOWN = 5
HINTS = {
    "missing_image_file": "; is images (--images) the folder that image paths start from?",
    "missing_image": "; text without images is read as kind: text (--format text)",
}
"""Advice to add where this is the commonest reason."""


class BadTexts(NamedTuple):
    """Texts of a task that cannot be used for one reason."""

    task: TextTask | None
    reason: str
    count: int
    example: str

    @classmethod
    def of(cls, bad: Any) -> "BadTexts":
        """Makes one of a `BadSample` that is a text."""
        return cls(bad.task, bad.reason, bad.count, f"{bad.name}{bad.detail}")


def most_bad(max_bad_fraction: float, seen: int) -> int:
    """Returns how many of `seen` may be unusable."""
    return math.floor(max_bad_fraction * seen + 1e-9)  # 0.29 * 100 is 28.999999999999996


def refuse_bad_share(
    what: str,
    used: int,
    skipped: Counter[str],
    examples: Mapping[str, str],
    max_bad_fraction: float,
    *,
    where: str = "",
) -> None:
    """Raises DataError, with reasons and examples, if more of `what` (samples, lines, ...) was skipped than allowed."""
    bad = skipped.total()
    if bad > most_bad(max_bad_fraction, bad + used):
        advice = "mend the data or raise max_bad_fraction (--max-bad-fraction)" if max_bad_fraction else "mend the data"
        raise DataError(
            f"{where}{bad:,} of {bad + used:,} {what} {'is' if bad == 1 else 'are'} unusable, "
            f"the limit is {max_bad_fraction:.0%}: "
            f"{format_reasons(skipped, examples)}; {advice}{HINTS.get(skipped.most_common(1)[0][0], '')}"
        )


def refuse_bad_texts(
    questions: int, others: int, bad: Iterable[BadTexts], max_bad_fraction: float, *, where: str = ""
) -> None:
    """Raises DataError as `refuse_bad_share` does, for questions by themselves and all other texts together.

    `questions` and `others` are the numbers of usable ones.
    """
    lost = list(bad)
    for what, used, is_question in (("questions", questions, True), ("texts", others, False)):
        skipped: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for one in lost:
            if (one.task == "question") is is_question:
                skipped[one.reason] += one.count
                examples.setdefault(one.reason, one.example)
        refuse_bad_share(what, used, skipped, examples, max_bad_fraction, where=where)


def format_reasons(skipped: Counter[str], examples: Mapping[str, str]) -> str:
    """Lists the commonest reasons with an example each: `empty_text 60 (as a.tar:17), missing_text 2 (as a.tar:9)`."""
    listed = [f"{reason} {count:,} (as {examples[reason]})" for reason, count in skipped.most_common(REASONS_SHOWN)]
    more = len(skipped) - len(listed)
    return visible(", ".join([*listed, *([f"{number_of(more, 'reason')} more"] if more else [])]))
