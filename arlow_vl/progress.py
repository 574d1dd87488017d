"""Progress of a long job: on a terminal one line with a bar, updated in place; in a log a line every ten seconds."""

import sys
import time
from datetime import timedelta

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_MOVES = 0.2
BAR_WIDTH = 24


class Display:
    """Shows progress: a line updated in place on a terminal, else plain lines at least `seconds` apart."""

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self.on_terminal = sys.stdout.isatty()
        self.seconds = SECONDS_BETWEEN_MOVES if self.on_terminal else seconds
        self.shown = time.monotonic()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.shown >= self.seconds

    def show(self, line: str, *, stays: bool = False) -> None:
        """Shows a line; on a terminal the next one overwrites it, unless it `stays`."""
        self.shown = time.monotonic()
        if self.on_terminal:
            print(f"\r\033[K{line}", end="\n" if stays else "", flush=True)
        else:
            print(line, flush=True)


class ProgressLine:
    """Shows `captions: 40 of 146 images  12.3 images/s  0:00:09 left` when called with 40 and 146."""

    def __init__(self, title: str, unit: str, *, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self.title = title
        self.unit = unit
        self.display = Display(seconds)
        self.began = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if done >= total:
            unit = self.unit.removesuffix("s") if total == 1 else self.unit
            self.display.show(f"{self.title}: {total:,} {unit} in {_seconds(self._elapsed())}", stays=True)
        elif self.display.is_due:
            self.display.show(self._line(done, total))

    def _line(self, done: int, total: int) -> str:
        rate = done / self._elapsed()
        bar = f"[{'#' * (BAR_WIDTH * done // total):<{BAR_WIDTH}}] " if self.display.on_terminal else ""
        left = f"  {_seconds((total - done) / rate)} left" if done else ""
        return f"{self.title}: {bar}{done:,} of {total:,} {self.unit}  {_shown(rate)} {self.unit}/s{left}"

    def _elapsed(self) -> float:
        return max(time.monotonic() - self.began, 1e-9)


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))


def _shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
