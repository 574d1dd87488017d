"""What Lightning trains: a model, its stage's policy, and one training step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from arlow_vl.data.loader import Batch
from arlow_vl.data.packing import bits_per_byte
from arlow_vl.errors import CheckpointError, DivergenceError
from arlow_vl.training.checkpoint_io import check_same_tensors
from arlow_vl.training.optimizers import build_optimizer, build_schedule
from arlow_vl.training.recipe import Recipe, first_difference, to_plain
from arlow_vl.training.stages import apply_policy, component_of, set_modes

NOT_FOR_THE_MODEL = ("keys", "source", "num_tokens", "num_images", "num_labels")


@dataclass
class StepRecord:
    """What one optimizer step did, over its batches."""

    losses: list[float] = field(default_factory=list)
    """The mean of each batch's labels."""
    labels: list[int] = field(default_factory=list)
    """How many labels of each batch count."""
    keys: list[str] = field(default_factory=list)
    tokens: int = 0
    images: int = 0
    lr: float = 0.0
    grad_norm: float = 0.0

    @property
    def loss(self) -> float:
        """The mean over the labels of all batches."""
        if len(self.losses) == 1:
            return self.losses[0]
        weighted = zip(self.losses, self.labels, strict=True)
        return sum(loss * labels for loss, labels in weighted) / max(1, sum(self.labels))

    def add(self, loss: float, batch: Batch) -> None:
        self.losses.append(loss)
        self.labels.append(labels_of(batch))
        self.keys += batch["keys"]
        self.tokens += batch.get("num_tokens", batch["input_ids"].numel())
        self.images += batch.get("num_images", 0)


class StageModule(LightningModule):
    """One stage of training. Batches are the model's keyword arguments, beside those of `NOT_FOR_THE_MODEL`."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.policy = recipe.policy
        self.record = StepRecord()
        apply_policy(model, self.policy)

    def train(self, mode: bool = True) -> "StageModule":
        super().train(mode)
        set_modes(self.model, self.policy, training=mode)
        return self

    def loss(self, batch: Batch, **options: Any) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}
        return self.model(**inputs, use_cache=False, skip_logits=True, **options).loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch; where several make a step the sum over its labels, divided when all have come.

        So the step's gradient is that of one large batch, however the labels lie in the batches.

        Raises:
            DivergenceError: the loss is not finite.
        """
        batches = self.trainer.accumulate_grad_batches
        if batch_idx % batches == 0:
            self.record = StepRecord()
        loss = self.loss(batch, **({"num_items_in_batch": 1} if batches > 1 else {}))
        mean = loss.item() if batches == 1 else loss.item() / max(1, labels_of(batch))
        self.record.add(mean, batch)
        if not torch.isfinite(loss):
            raise DivergenceError(self._divergence("loss", mean))
        return loss

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm. Raises DivergenceError, before the optimizer steps, for a gradient that is not finite."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if (batches := self.trainer.accumulate_grad_batches) > 1:  # by which Lightning has divided
            for parameter in (parameter for parameter in parameters if parameter.grad is not None):
                parameter.grad.mul_(batches / max(1, sum(self.record.labels)))
        self.record.grad_norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val).item()
        self.record.lr = optimizer.param_groups[0]["lr"]
        if not self.record.grad_norm < float("inf"):
            raise DivergenceError(self._divergence("gradient norm", self.record.grad_norm))

    def _divergence(self, what: str, value: float) -> str:
        keys = self.record.keys
        more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
        step = self.trainer.global_step + 1
        return f"{what} is {value} at step {step}, samples {', '.join(keys[:4])}{more}; these weights were not saved"

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        predicted = labels_of(batch)
        for name, value in self.validation_metrics(self.loss(batch), batch).items():
            self.log(name, value, on_step=False, on_epoch=True, batch_size=predicted)

    def validation_metrics(self, loss: Tensor, batch: Batch) -> dict[str, Tensor | float]:
        """What is averaged over a validation, weighted by predicted tokens."""
        return {"validation_loss": loss}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self.model, self.recipe.optim)
        schedule = build_schedule(optimizer, self.recipe.optim, self.recipe.run.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Frozen tensors stay out: they are those that the run began with, and `FrozenTensorsCheck` has their hashes.

        Raises:
            DivergenceError: a weight is not finite.
        """
        checkpoint["state_dict"] = self._trained(checkpoint["state_dict"])
        checkpoint["recipe"] = comparable(to_plain(self.recipe))
        for name, tensor in checkpoint["state_dict"].items():
            if not tensor.isfinite().all():
                raise DivergenceError(f"{name} is not finite after step {self.trainer.global_step}; it was not saved")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises CheckpointError for a checkpoint of another recipe or another model."""
        difference = first_difference(comparable(checkpoint.get("recipe", {})), comparable(to_plain(self.recipe)))
        if difference:
            raise CheckpointError(f"the checkpoint is of another recipe: {difference}; use another run_dir")
        state = self.state_dict()
        check_same_tensors(checkpoint["state_dict"], self._trained(state))
        checkpoint["state_dict"] = {**state, **checkpoint["state_dict"]}

    def _trained(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if self.policy[component_of(name)] == "train"}


class TextModule(StageModule):
    """Pretraining on text; validation also in bits per byte, which no tokenizer can flatter."""

    validation_columns = ("validation_loss", "validation_bits_per_byte")

    def __init__(self, model: nn.Module, recipe: Recipe, *, tokens_per_byte: float) -> None:
        super().__init__(model, recipe)
        self.tokens_per_byte = tokens_per_byte

    def validation_metrics(self, loss: Tensor, batch: Batch) -> dict[str, Tensor | float]:
        return {"validation_loss": loss, "validation_bits_per_byte": bits_per_byte(loss.item(), self.tokens_per_byte)}


class ImageTextModule(StageModule):
    """Training on images with text; validation of each source by itself and of all together."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self.validation_columns = (
            "validation_loss",
            *(f"validation_loss_{source.name}" for source in recipe.validation_sources),
        )

    def validation_metrics(self, loss: Tensor, batch: Batch) -> dict[str, Tensor | float]:
        return {"validation_loss": loss, f"validation_loss_{batch['source']}": loss}


def labels_of(batch: Batch) -> int:
    """How many labels of a batch count, see `collate.with_counts`."""
    return batch["num_labels"]


def comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A plain recipe without what may differ when a run goes on.

    That is where its folder lies, how many samples may be bad, how many processes read, and the weights of packed
    sources, of which the loader tells.
    """
    kept = {name: value for name, value in recipe.items() if name not in ("run_dir", "max_bad_fraction")}
    kept["run"] = {name: value for name, value in recipe.get("run", {}).items() if name != "workers"}
    if recipe.get("packing"):
        kept["sources"] = [{**source, "weight": None} for source in recipe["sources"]]
    return kept
