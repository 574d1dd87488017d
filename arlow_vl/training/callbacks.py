"""Callbacks that protect a run: checks of frozen tensors and unusable samples, checkpoints, signals to stop."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from arlow_vl.printing import print_line
from arlow_vl.training.checkpoint_names import checkpoint_path, remove_older
from arlow_vl.training.datamodules import StageData
from arlow_vl.training.ranks import largest
from arlow_vl.training.settings import RunConfig
from arlow_vl.training.stages import check_frozen, check_trainable, hash_frozen, hash_own_parts
from arlow_vl.training.steps import Readings, step_ends


class FrozenTensorsCheck(Callback):
    """Check that the policy's parameters are trained, and that frozen tensors keep their bytes throughout the run.

    It runs before each checkpoint, so that no checkpoint was trained beside a changed tensor. Of sharded tensors each
    process then hashes its own shard; at the start and the end of the run they are gathered and hashed whole.
    """

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}
        self.own: dict[str, str] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_trainable(pl_module.model, pl_module.policy, trainer.optimizers[0])
        now = hash_frozen(pl_module.model, pl_module.policy)
        check_frozen(self.hashes or now, now)
        self.hashes, self.own = now, hash_own_parts(pl_module.model, pl_module.policy, frozen=now)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        check_frozen(self.own, hash_own_parts(pl_module.model, pl_module.policy))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_frozen(self.hashes, hash_frozen(pl_module.model, pl_module.policy))

    def state_dict(self) -> dict[str, Any]:
        return dict(self.hashes)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares with the hashes of the start, which exist already where tensors are sharded."""
        check_frozen(state_dict, self.hashes or state_dict)
        self.hashes = dict(state_dict)


class BadItemsCheck(Callback):
    """Check that all processes together met no more unusable samples than the recipe allows.

    It runs before each checkpoint and after each validation. A process that exceeds the limit by itself stops at once.
    """

    def __init__(self, data: StageData) -> None:
        self.data = data

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.data.share_bad_items()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.data.share_bad_items()


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals of a person, a closed terminal, or a scheduler that needs the machine."""
ONE_STOP_SECONDS = 2.0
"""Time in which further signals belong to the first: a scheduler sends one to `arlow fit` and to its processes, which
get it again from `arlow fit`."""

OVER = 1000
"""Number beyond all signals, for the end of `run.max_hours`."""
TIME_IS_OVER = 75
"""Exit status that asks to be started again (EX_TEMPFAIL of sysexits.h)."""


class Checkpointing(Callback):
    """Saves every n steps, after the last step, and on a signal to stop; a later signal ends the process at once.

    A checkpoint is saved before the validation of its step and notes that this is due, so a resumed run validates
    first. Must come after the logs in Trainer's list, so that they have every step of a checkpoint, and after early
    stopping, so that the last step is saved.
    """

    def __init__(self, folder: Path, run: RunConfig, readings: Readings, *, began: float) -> None:
        """`began` is the `time.monotonic()` of this start of the run, before its data were prepared."""
        self.folder = folder
        self.run = run
        self.readings = readings
        self.began = began
        self.signal: int | None = None
        self.signalled_at = 0.0
        self.saved_step = 0
        self.validation_is_due = False

    def state_dict(self) -> dict[str, Any]:
        return {"validation_is_due": self.validation_is_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validation_is_due = state_dict["validation_is_due"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_step = trainer.global_step
        self._listen()
        if self.validation_is_due:
            loop = trainer.fit_loop.epoch_loop.val_loop
            trainer.validating = True
            loop.restarting = False
            loop.run()
            trainer.training = True

    def _listen(self) -> None:
        """Replaces Lightning's signal handlers, which save nothing; Lightning restores the original ones at the end."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                signal.signal(number, self._note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if not step_ends(trainer, batch_idx):
            return
        step = trainer.global_step
        self.validation_is_due = step % self.run.validate_every == 0
        if step % self.run.checkpoint_every == 0 or step == self.run.max_steps:
            self._save(trainer)
        self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.should_stop and self.saved_step < trainer.global_step:
            self._save(trainer)
        self.validation_is_due = False

    def _save(self, trainer: Trainer) -> None:
        self.readings.read()
        trainer.save_checkpoint(checkpoint_path(self.folder, trainer.global_step))
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            remove_older(self.folder)
        self.readings.go_on()

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is None:
            self.signal, self.signalled_at = number, time.monotonic()
        elif time.monotonic() - self.signalled_at > ONE_STOP_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """Saves and raises SystemExit if a signal came (128 + its number) or the time is over (75)."""
        hours = (time.monotonic() - self.began) / 3600
        is_over = self.run.max_hours is not None and hours >= self.run.max_hours
        reason = largest(self.signal or int(is_over) * OVER)  # a signal to one process stops all, at the same step
        if not reason:
            return
        if self.saved_step < trainer.global_step:
            self._save(trainer)
        name = f"run.max_hours ({self.run.max_hours:g})" if reason == OVER else signal.Signals(reason).name
        step = trainer.global_step
        where = checkpoint_path(self.folder, step)
        print_line(
            f"arlow: stopped by {name} after step {step}; the same command resumes from {where}", file=sys.stderr
        )
        raise SystemExit(TIME_IS_OVER if reason == OVER else 128 + reason)
