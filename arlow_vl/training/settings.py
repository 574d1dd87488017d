"""Groups of keys of a recipe, as dataclasses that check their values."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from arlow_vl.data.mixing import Mixture, scheduled, weights_by_size
from arlow_vl.printing import number_of


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning rate: linear warm-up, then `schedule`."""

    lr: float | None = None
    """Peak learning rate, reached after warm-up; null: 0.768 / hidden_size, for a new text model (`training.sizes`)."""
    lr_floor: float = 0.1
    """Learning rate of the last step, as a share of the peak."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    weight_decay: float = 0.1
    """Decay of the weight matrices; norms, biases, gates, embeddings and tables of positions have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: torch.optim.Muon for the matrices of blocks and the projector, AdamW for all else, with the same rate."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Rate after warm-up: a cosine or a line down to the floor; constant; or wsd, constant and then a line down."""
    decay_steps: int | None = None
    """Optimizer steps of the final decay of wsd; null: a fifth of the run."""
    ema: float | None = None
    """Decay of a moving average of the weights, such as 0.999, for validation and the exported model; null: none."""
    max_spike: float | None = None
    """Factor over the recent mean of gradient norms above which a step is left out; null: no step is."""

    def __post_init__(self) -> None:
        check(self.lr is None or self.lr > 0, f"optim.lr must be positive, got {self.lr}")
        check(0 <= self.lr_floor <= 1, f"optim.lr_floor is a share from 0 to 1, got {self.lr_floor}")
        check(self.warmup_steps >= 0, f"optim.warmup_steps must not be negative, got {self.warmup_steps}")
        check(self.weight_decay >= 0, f"optim.weight_decay must not be negative, got {self.weight_decay}")
        check(
            all(0 <= beta < 1 for beta in self.betas), f"optim.betas must be at least 0 and below 1, got {self.betas}"
        )
        check(self.grad_clip > 0, f"optim.grad_clip must be positive, got {self.grad_clip}")
        check(
            self.decay_steps is None or (self.schedule == "wsd" and self.decay_steps >= 1),
            f"optim.decay_steps needs schedule wsd and must be at least 1, got {self.decay_steps} with {self.schedule}",
        )
        check(self.ema is None or 0 < self.ema < 1, f"optim.ema must be between 0 and 1, got {self.ema}")
        check(self.max_spike is None or self.max_spike > 1, f"optim.max_spike must be over 1, got {self.max_spike}")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Devices of a run, and how the model is spread over them. A run may resume with other values."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""
    devices: int = 1
    """Devices of each node; on a CPU, processes."""
    nodes: int = 1
    """Machines."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: a whole model on each device; fsdp: its tensors sharded (FSDP2); auto: ddp if there are several devices."""
    tensor_parallel: int = 1
    """Devices that share each matrix product (fsdp)."""
    replicas: int = 1
    """Groups of devices that each hold the whole model in shards: hybrid sharding (fsdp)."""

    def __post_init__(self) -> None:
        for name in ("devices", "nodes", "tensor_parallel", "replicas"):
            check(getattr(self, name) >= 1, f"run.engine.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tensor_parallel", "replicas"):
            value = getattr(self, name)
            check(value == 1 or self.strategy == "fsdp", f"run.engine.{name} is {value}, which needs strategy fsdp")
        groups = self.tensor_parallel * self.replicas
        if self.world_size % groups:
            raise ValueError(
                f"run.engine: {self.world_size} devices cannot be divided by tensor_parallel x replicas, {groups}; "
                "make devices x nodes a multiple of it"
            )

    @property
    def world_size(self) -> int:
        """Processes of the whole run."""
        return self.devices * self.nodes

    @property
    def data_ranks(self) -> int:
        """Processes that read different batches; those of a tensor-parallel group read the same."""
        return self.world_size // self.tensor_parallel


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Logs, looks and the best model of a run. None of it affects training, but patience may end it."""

    log_every: int = 1
    """Optimizer steps between readings of losses and norms from the device; each reading waits for the device."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = field(default_factory=list)
    """Loggers for metrics besides metrics.csv; each needs its package."""
    show_every: int | None = None
    """Optimizer steps between looks at the model: texts that it writes for fixed validation images, how much its images
    help it, its gates; for text, continuations of documents. null: a look at each validation."""
    show_samples: int = 4
    """Validation samples of each source in a look; 0: no looks."""
    keep_best: str | None = None
    """Validation column whose best model (smallest value) is kept too, in `best` of the run folder; null: none."""
    patience: int | None = None
    """Validations without a better value of keep_best after which the run ends; null: it goes to its end."""

    def __post_init__(self) -> None:
        for name in ("log_every", "show_every", "patience"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"run.watch.{name} must be at least 1, got {value}")
        check(self.show_samples >= 0, f"run.watch.show_samples must not be negative, got {self.show_samples}")
        check(len(set(self.loggers)) == len(self.loggers), f"run.watch.loggers names one twice: {self.loggers}")
        check(self.patience is None or self.keep_best is not None, "run.watch.patience needs run.watch.keep_best")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that every run has."""

    max_steps: int
    """Optimizer steps of the whole run."""
    validate_every: int
    """Optimizer steps between validations; max_steps must be a multiple, so that the last step is validated."""
    checkpoint_every: int
    """Optimizer steps between checkpoints; the last step has one in any case."""
    accumulate_grad_batches: int = 1
    """Batches of each optimizer step, shared by all devices."""
    validation_samples: int | None = None
    """Samples (rows, for text) that a validation reads of each validation source; null: all."""
    seed: int = 0
    """Seed of initial weights, the order of samples and dropout."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "32-true"
    """Lightning's name of the compute precision; 16-mixed needs a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations inside blocks in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile each block by itself: faster after the first steps, with slightly different rounding."""
    threads: int | None = None
    """CPU threads of torch in each process; null: OMP_NUM_THREADS, else the cores, shared by the processes on a CPU."""
    workers: int = 0
    """Processes that read batches ahead, on Linux; 0: the training process reads them. A run may resume with another
    number."""
    skip_steps: list[int] = field(default_factory=list)
    """Optimizer steps, counted from 1, whose batches are skipped without training, as they are bad."""
    max_hours: float | None = None
    """Wall-clock hours of one start, preparation of data included, after which it ends with a checkpoint once a step is
    complete; null: no limit."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Devices."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Logs, looks and the best model."""

    def __post_init__(self) -> None:
        for (
            name
        ) in "max_steps validate_every checkpoint_every accumulate_grad_batches validation_samples threads".split():
            value = getattr(self, name)
            check(value is None or value >= 1, f"run.{name} must be at least 1, got {value}")
        check(self.workers >= 0, f"run.workers must not be negative, got {self.workers}")
        check(0 <= self.seed < 2**63, f"run.seed must be at least 0 and below 2**63, got {self.seed}")
        check(all(step >= 1 for step in self.skip_steps), f"run.skip_steps count from 1, got {self.skip_steps}")
        check(
            max(self.skip_steps, default=0) <= self.max_steps,
            f"run.skip_steps is {self.skip_steps}, but the run has {number_of(self.max_steps, 'step')}",
        )
        check(self.max_hours is None or self.max_hours > 0, f"run.max_hours must be over 0, got {self.max_hours}")
        before = self.max_steps - self.max_steps % self.validate_every
        instead = f"{before} or {before + self.validate_every}" if before else self.validate_every
        check(
            self.max_steps == before,
            f"run.max_steps ({self.max_steps}) must be a multiple of run.validate_every ({self.validate_every}); "
            f"give {instead}",
        )


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Source of samples, with images, text or both, and which of its texts are learnt."""

    name: str
    """Name of the source in sample keys and metrics."""
    data: str
    """File, folder or glob; docs/formats.md lists the formats."""
    images: Path | None = None
    """Folder to which image paths in annotations are relative; null: that of the annotations."""
    format: str | None = None
    """Format of `data`; null: detected."""
    kind: Literal["captions", "questions", "conversations", "documents", "all", "text"] = "all"
    """Kind of a sample's texts that are learnt; text: `data` is text alone, in any text format or tokenised."""
    samples_per_batch: int | None = None
    """Texts of this source in each training batch; for validation, the batch size. Null where rows are packed."""
    weight: float | dict[int, float] | None = None
    """Share of the source in packed rows, relative to all weights; or weights by optimizer step, interpolated linearly.
    null: its number of samples (for text alone, of pieces of max_length) to the power of 1 / packing.temperature."""
    epochs: float | None = None
    """Times that the source is read in packed rows, after which the others share its part; null: without end."""

    def __post_init__(self) -> None:
        check(
            re.fullmatch(r"[\w.-]+", self.name) is not None,
            f"sources: name {self.name!r} must be letters, digits, '.', '_' and '-': it is a column of metrics.csv",
        )
        for name in ("samples_per_batch", "epochs"):
            value = getattr(self, name)
            check(value is None or value > 0, f"source {self.name}: {name} must be over 0, got {value}")
        check(self.weight != {}, f"source {self.name}: weight names no step; give a number, or leave it out")


@dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """Packing of training samples into rows of one width, from all sources by weight; texts about an image share it."""

    row_tokens: int
    """Tokens of a row; no text is longer than max_length."""
    row_images: int
    """Largest number of images in a row."""
    rows_per_batch: int
    """Rows of a batch."""
    by: Literal["samples", "tokens"] = "samples"
    """Unit of which weights are shares."""
    temperature: float = 1.0
    """Above 1, small sources without a weight get more than by their size (see `data.mixing.weights_by_size`)."""

    def __post_init__(self) -> None:
        for name in ("row_tokens", "rows_per_batch"):
            check(getattr(self, name) >= 1, f"packing.{name} must be at least 1, got {getattr(self, name)}")
        check(self.row_images >= 0, f"packing.row_images must not be negative, got {self.row_images}")
        check(self.temperature > 0, f"packing.temperature must be over 0, got {self.temperature}")


def mixture_of(packing: PackingConfig, sources: Sequence[SourceConfig], sizes: Mapping[str, int]) -> Mixture:
    """Returns the mixture of the sources, with a weight by size for those that give none.

    Raises:
        ValueError: a weight is negative, or all are 0 at some step.
    """
    by_size = weights_by_size(sizes, temperature=packing.temperature)
    weights = {source.name: by_size[source.name] if source.weight is None else source.weight for source in sources}
    epochs = {source.name: source.epochs for source in sources if source.epochs is not None}
    return Mixture(weights=scheduled(weights), by=packing.by, epochs=epochs)


def check(holds: bool, sentence: str) -> None:
    """Raises ValueError with the sentence unless `holds` is True."""
    if not holds:
        raise ValueError(sentence)
