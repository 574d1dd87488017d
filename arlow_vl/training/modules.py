"""Lightning modules: a model with its policy, its training step and its validation."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from arlow_vl.data.loader import merge_states
from arlow_vl.data.packing import bits_per_byte
from arlow_vl.data.sources import Batch
from arlow_vl.errors import CheckpointError, DivergenceError
from arlow_vl.training.checkpoint_io import check_same_tensors
from arlow_vl.training.compiling import as_written
from arlow_vl.training.components import component_of
from arlow_vl.training.guards import SpikeGuard
from arlow_vl.training.model_fields import plain_fields, refuse_other_settings
from arlow_vl.training.optimizers import build_optimizer, build_schedule, leave_out
from arlow_vl.training.policy import read_policy
from arlow_vl.training.ranks import gathered, own_part, summed, whole, world_size
from arlow_vl.training.recipe import Recipe, to_plain, validation_columns_of
from arlow_vl.training.resume import refuse_other_recipe
from arlow_vl.training.sharding import ShardedStrategy
from arlow_vl.training.stages import apply_policy, set_modes, stays
from arlow_vl.training.steps import StepRecord

NOT_FOR_THE_MODEL = ("keys", "source", "is_filler", "num_tokens", "num_images", "num_labels")
LOSS_UNIT = 1024
"""Divisor of summed losses where a step has several batches, as a plain sum of 16-bit losses would overflow."""


class StageModule(LightningModule):
    """Training of one stage. A batch holds keyword arguments of the model and the entries of `NOT_FOR_THE_MODEL`."""

    validation_columns: tuple[str, ...] = ("validation_loss",)

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.policy = read_policy(recipe.policy)
        self.record = StepRecord()
        self.guard = SpikeGuard(recipe.optim.max_spike)
        apply_policy(model, self.policy)

    def configure_model(self) -> None:
        """Shards the model if the strategy asks for it; Lightning calls this once the processes have their devices."""
        if isinstance(strategy := self.trainer.strategy, ShardedStrategy):
            encodes = getattr(self.recipe, "cache_features", None) is None
            strategy.shard(self.model, precision=self.recipe.run.precision, encodes=encodes)

    def train(self, mode: bool = True) -> "StageModule":
        super().train(mode)
        set_modes(self.model, self.policy, training=mode)
        return self

    def loss(self, batch: Batch, **options: Any) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}
        return self.model(**inputs, use_cache=False, skip_logits=True, **options).loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Returns the loss of a batch: the mean over its labels, or a sum where several batches make a step.

        The gradients of sums are divided by the labels of the whole step before clipping. So they are those of one
        large batch, however the labels are spread over batches and processes. Nothing is computed for `run.skip_steps`.
        """
        batches = self.trainer.accumulate_grad_batches
        if batch_idx % batches == 0:
            self.record = StepRecord()
        if batch_idx // batches + 1 in self.recipe.run.skip_steps:
            self.record.add(torch.zeros((), device=self.device), 0, batch)
            self.record.is_skipped = True
            nothing = torch.zeros((), device=self.device, requires_grad=True)
            return nothing if world_size() > 1 else None  # Lightning takes None from one process alone
        labels = labels_of(batch)
        if batches == world_size() == 1 and labels:  # the mean of no labels is NaN, their sum 0
            loss = mean = self.loss(batch)
        else:
            loss = self.loss(batch, num_items_in_batch=LOSS_UNIT)
            mean = loss.detach() * (LOSS_UNIT / max(1, labels))
        self.record.add(mean.detach(), labels, batch)
        return loss

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm, and lets the step change nothing if its loss or gradient is not finite, or it is a spike."""
        record = self.record
        if world_size() > 1:
            record.sum_over_ranks(self.recipe.run.engine.tensor_parallel)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        self._divide_by_labels([own_part(gradient) for gradient in gradients])
        by_component: dict[str, list[Tensor]] = {"": gradients}
        for parameter in parameters:
            by_component.setdefault(component_of(names[id(parameter)]), []).append(parameter.grad)
        norms = {name: norm_of(some) for name, some in by_component.items()}
        clip([own_part(gradient) for gradient in gradients], gradient_clip_val, norms[""])
        record.grad_norms, record.lr = norms, optimizer.param_groups[0]["lr"]
        record.is_bad = ~(record.loss.isfinite() & norms[""].isfinite())
        record.is_overflow = self._may_overflow() & record.is_bad & record.loss.isfinite()
        record.is_spike = self.guard.look(norms[""], is_bad=record.is_bad)
        leave_out(optimizer, record.is_bad | record.is_spike)

    def _may_overflow(self) -> bool:
        """Returns True if gradients are scaled (16-mixed), so that a non-finite one only calls for a smaller scale."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler is not None and scaler.get_scale() > 1

    def _divide_by_labels(self, gradients: list[Tensor]) -> None:
        """Turns gradients of summed losses into those of the mean over the step's labels, in place on the device."""
        batches = self.trainer.accumulate_grad_batches  # Lightning has divided by this
        totals = self.record.totals
        if totals is not None:  # the strategy has averaged over the data ranks
            ranks = self.recipe.run.engine.data_ranks
            torch._foreach_mul_(gradients, (batches * ranks * LOSS_UNIT / totals[1].clamp(min=1)).float())
        elif batches > 1:
            torch._foreach_mul_(gradients, batches * LOSS_UNIT / max(1, sum(self.record.labels)))

    def on_validation_epoch_start(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the sums, unless it is a filler that keeps a rank in step with others that have more."""
        predicted, is_filler = labels_of(batch), batch.get("is_filler", False)
        with as_written():
            loss = self.loss(batch)
        for name, value in self.validation_metrics(loss, batch).items():
            before = self.sums.setdefault(name, torch.zeros(2, dtype=torch.float64, device=self.device))
            if predicted and not is_filler:
                mean = torch.as_tensor(value, dtype=torch.float64, device=self.device)
                self.sums[name] = before + torch.stack([mean, torch.ones_like(mean)]) * predicted

    def on_validation_epoch_end(self) -> None:
        """Logs the means over the labels of all processes."""
        for name, sums in self.sums.items():
            total, labels = summed(sums)
            self.log(name, (total / labels).float())

    def validation_metrics(self, loss: Tensor, batch: Batch) -> dict[str, Tensor | float]:
        """Returns the metrics of a batch, which validation averages with the number of labels as weight."""
        return {"validation_loss": loss}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self.model, self.recipe.optim, self.policy)
        schedule = build_schedule(optimizer, self.recipe.optim, self.recipe.run.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the trained tensors alone: frozen ones can be loaded again, and `FrozenTensorsCheck` has their hashes.

        Raises:
            DivergenceError: a weight is not finite.
        """
        checkpoint["state_dict"] = self._trained(checkpoint["state_dict"])
        checkpoint["recipe"] = to_plain(self.recipe)
        checkpoint["model_fields"] = plain_fields(self.model.config)
        checkpoint["trained_prompts"] = [prompts.counts for prompts in self.trainer.datamodule.trained_prompts]
        checkpoint["spikes"] = self.guard.state_dict()
        loops = checkpoint["loops"]["fit_loop"]["state_dict"]
        of_ranks = gathered(loops["combined_loader"])[:: self.recipe.run.engine.tensor_parallel]
        loops["combined_loader"] = [merge_states(states) for states in zip(*of_ranks, strict=True)]
        for name, tensor in checkpoint["state_dict"].items():
            if not own_part(tensor).isfinite().all():
                raise DivergenceError(f"{name} is not finite after step {self.trainer.global_step}; it was not saved")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises CheckpointError for a checkpoint of another recipe or another model."""
        try:
            refuse_other_recipe(checkpoint.get("recipe", {}), self.recipe, step=checkpoint["global_step"])
        except ValueError as error:
            raise CheckpointError(f"the checkpoint is of another recipe: {error}; use another run_dir") from error
        refuse_other_settings(checkpoint.get("model_fields", {}), self.model.config)
        state = self.state_dict()
        check_same_tensors(checkpoint["state_dict"], self._trained(state))
        checkpoint["state_dict"] = {**state, **checkpoint["state_dict"]}
        self.guard.load_state_dict(checkpoint["spikes"])
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if checkpoint["global_step"] < self.recipe.run.max_steps:  # for a finished run that is extended
            progress["is_last_batch"] = False
        count_anew(progress, checkpoint["global_step"] * self.trainer.accumulate_grad_batches)

    def _trained(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if not stays(name, self.policy)}


class TextModule(StageModule):
    """Training on text; validation also gives bits per byte, which do not depend on the tokenizer."""

    def __init__(self, model: nn.Module, recipe: Recipe, *, tokens_per_byte: float) -> None:
        super().__init__(model, recipe)
        self.validation_columns = validation_columns_of(recipe)
        self.tokens_per_byte = tokens_per_byte

    def validation_metrics(self, loss: Tensor, batch: Batch) -> dict[str, Tensor | float]:
        return {"validation_loss": loss, "validation_bits_per_byte": bits_per_byte(loss.item(), self.tokens_per_byte)}


class ImageTextModule(StageModule):
    """Training on images with text; validation gives the loss of each source and of all together."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self.validation_columns = validation_columns_of(recipe)

    def validation_metrics(self, loss: Tensor, batch: Batch) -> dict[str, Tensor | float]:
        return {"validation_loss": loss, f"validation_loss_{batch['source']}": loss}


def count_anew(progress: dict[str, Any], batches: int) -> None:
    """Sets Lightning's counts of batches, in place, to those of one process of this run.

    A checkpoint has the counts of one process of the earlier run, which may have had more or fewer processes.
    """
    for counts in (progress["total"], progress["current"]):
        ahead = batches - counts["ready"]
        for name in counts:
            counts[name] += ahead


def norm_of(gradients: list[Tensor]) -> Tensor:
    """Returns the norm of all gradients together, also of those that are sharded in different ways."""
    layouts: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        layouts.setdefault((getattr(gradient, "device_mesh", None), getattr(gradient, "placements", None)), []).append(
            gradient
        )
    norms = [whole(nn.utils.get_total_norm(some)) for some in layouts.values()]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip(gradients: list[Tensor], max_norm: float | None, norm: Tensor) -> None:
    """Does what `torch.nn.utils.clip_grads_with_norm_` does, to the local shard of each gradient, in place."""
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def labels_of(batch: Batch) -> int:
    """Returns the number of labels in a batch that count, see `collate.with_counts`."""
    return batch["num_labels"]
