"""Progress of a run: one moving line on a terminal, a line every few seconds in a log."""

import time
from datetime import timedelta

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from arlow_vl.printing import visible
from arlow_vl.progress import SECONDS_BETWEEN_LINES, Display
from arlow_vl.training.look_results import Look
from arlow_vl.training.steps import Reading

WAIT_WORTH_A_WORD = 0.05
"""Share of time spent waiting for data from which it is shown."""


class Progress(ProgressBar):
    """Progress bar with step, loss, tokens/s, images/s, MFU and time left."""

    def __init__(self, max_steps: int, *, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        super().__init__()
        self.max_steps = max_steps
        self.display = Display(seconds)
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin(trainer.global_step)

    def begin(self, step: int) -> None:
        self.first_step, self.began = step, time.monotonic()
        self._count_anew()

    def _count_anew(self) -> None:
        self.display.shown, self.tokens, self.images = time.monotonic(), 0, 0

    def step_read(self, reading: Reading) -> None:
        if not reading.is_skipped:
            self.tokens += reading.tokens
            self.images += reading.images
        if self.display.is_due or reading.step == self.max_steps:
            what = "skipped" if reading.is_skipped else f"loss {reading.loss:.3f}"
            self._show(self.line(reading.step, what, *speed_words(reading)))
            self._count_anew()

    def look_taken(self, look: Look) -> None:
        self._show(visible(look.line()), stays=True)

    def line(self, step: int, what: str, *more: str) -> str:
        now = time.monotonic()
        seconds = max(now - self.display.shown, 1e-9)
        left = (now - self.began) / (step - self.first_step) * (self.max_steps - step)
        parts = [f"step {step:,}/{self.max_steps:,}", what, f"{self.tokens / seconds:,.0f} tokens/s"]
        parts += [f"{self.images / seconds:,.0f} images/s"] if self.images else []
        return "  ".join([*parts, *more, f"{timedelta(seconds=round(left))} left"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("validation_loss")
        if loss is not None:
            self._show(f"step {trainer.global_step:,}/{self.max_steps:,}  validation loss {loss:.3f}", stays=True)
        self._count_anew()

    def _show(self, line: str, *, stays: bool = False) -> None:
        if self.enabled:
            self.display.show(line, stays=stays)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.display.on_terminal and self.enabled:
            print(flush=True)


def speed_words(reading: Reading) -> list[str]:
    """Returns the MFU, if known, and the share of time spent waiting for data, if that is large."""
    words = [] if reading.mfu is None else [f"MFU {reading.mfu:.0%}"]
    waits = reading.data_wait is not None and reading.data_wait >= WAIT_WORTH_A_WORD
    return words + ([f"{reading.data_wait:.0%} waiting for data"] if waits else [])
