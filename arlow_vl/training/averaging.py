"""Exponential moving average of the trained weights, which validation and the exported model use."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from arlow_vl.training.steps import step_ends


class MovingAverage(Callback):
    """Average of the trained tensors alone, in float32; Lightning's own callback copies the whole model.

    In bf16 an update by a thousandth of the difference would be rounded away, so the average is only rounded when it
    is copied into the model. The decay starts low, at (1 + step) / (10 + step), so that the random initial weights
    are soon forgotten.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.average)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = _trained(pl_module)
        kept = {name: self.average.get(name, tensor) for name, tensor in now.items()}
        self.average = {name: kept[name].to(tensor.device).float().clone() for name, tensor in now.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if step_ends(trainer, batch_idx):
            step = trainer.global_step
            update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
            update(list(self.average.values()), [tensor.float() for tensor in _trained(pl_module).values()], None)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = {name: tensor.clone() for name, tensor in _trained(pl_module).items()}
        _put(pl_module, self.average)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _put(pl_module, self.trained)
        self.trained = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves the trained weights, tied names included, even during a validation, when the model has the average."""
        # By identity, not by address: empty shards of a rank are all at address 0.
        kept = {id(p): self.trained[name] for name, p in pl_module.model.named_parameters() if name in self.trained}
        for name, parameter in pl_module.named_parameters(remove_duplicate=False):
            if name in checkpoint["state_dict"] and id(parameter) in kept:
                checkpoint["state_dict"][name] = kept[id(parameter)]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _put(pl_module, self.average)


def _trained(module: LightningModule) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.model.named_parameters() if p.requires_grad}


@torch.no_grad()
def _put(module: LightningModule, tensors: dict[str, Tensor]) -> None:
    for name, tensor in _trained(module).items():
        tensor.copy_(tensors[name])
