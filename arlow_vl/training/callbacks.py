"""What guards a run: its frozen tensors, its checkpoints, signals to stop."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from arlow_vl.printing import print_line
from arlow_vl.training.checkpoint_io import remove_older
from arlow_vl.training.checkpoint_names import checkpoint_path
from arlow_vl.training.datamodules import StageData
from arlow_vl.training.ranks import largest
from arlow_vl.training.settings import RunConfig
from arlow_vl.training.stages import check_frozen, check_trainable, hash_frozen, hash_own_parts
from arlow_vl.training.steps import Readings, step_ends


class FrozenTensorsCheck(Callback):
    """What is trained is what the policy says; every frozen tensor keeps its bytes from the first step to the last.

    Checked before each checkpoint, so that none holds what was trained beside a changed tensor. Where tensors lie in
    parts on several devices each process then looks at its own; at the start and the end all look at the whole.
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
        """Comes after the start's look where tensors lie in parts."""
        check_frozen(state_dict, self.hashes or state_dict)
        self.hashes = dict(state_dict)


class BadItemsCheck(Callback):
    """All processes together meet no more unusable samples than may be: checked before each checkpoint, and when a
    validation ends. What one of them meets alone is too much at once."""

    def __init__(self, data: StageData) -> None:
        self.data = data

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.data.share_bad_items()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.data.share_bad_items()


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""From a person, a closed terminal, or a scheduler that needs the machine."""


OVER = 1000
"""Stands for the end of the time among the numbers of signals."""
TIME_IS_OVER = 75
"""Exit status: to be started again (EX_TEMPFAIL of sysexits.h)."""


class Checkpointing(Callback):
    """Saves every n steps, after the last step, and on a signal to stop; a second one ends the process at once.

    A checkpoint is of its step before the validation, and says that this is due: then the run that goes on validates
    first. Must stand after the logs in Trainer's list, so that a checkpoint never has a step that they lack; and after
    what ends a run early, whose last step is saved too.
    """

    def __init__(self, folder: Path, run: RunConfig, readings: Readings, *, began: float) -> None:
        """`began`: when this start of the run did (`time.monotonic()`), before its data were prepared."""
        self.folder = folder
        self.run = run
        self.readings = readings
        self.began = began
        self.signal: int | None = None
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
        """Takes the place of Lightning's handlers, which save nothing; Lightning restores the first ones at its end."""
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
        self._stop_if_told(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop_if_told(trainer)

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
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number

    def _stop_if_told(self, trainer: Trainer) -> None:
        """Raises SystemExit, 128 + a signal that has come or 75 when the time is over, with the step saved."""
        hours = (time.monotonic() - self.began) / 3600
        is_over = self.run.max_hours is not None and hours >= self.run.max_hours
        reason = largest(self.signal or int(is_over) * OVER)  # one process was told: all stop, at the same step
        if not reason:
            return
        if self.saved_step < trainer.global_step:
            self._save(trainer)
        name = f"run.max_hours ({self.run.max_hours:g})" if reason == OVER else signal.Signals(reason).name
        step = trainer.global_step
        where = checkpoint_path(self.folder, step)
        print_line(
            f"arlow: stopped by {name} after step {step}; the same command goes on from {where}", file=sys.stderr
        )
        raise SystemExit(TIME_IS_OVER if reason == OVER else 128 + reason)
