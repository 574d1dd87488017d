"""Recipes of the runs of `arlow fit`, as frozen dataclasses that check their values."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arlow_vl.data.bad_share import MAX_BAD_FRACTION
from arlow_vl.training.policy import Component, Policy, read_policy
from arlow_vl.training.settings import OptimConfig, PackingConfig, RunConfig, SourceConfig, check, mixture_of


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Pretrains the decoder on text."""

    stage: Literal["text"]
    """Kind of the recipe."""
    run_dir: Path
    """Run folder: config.yaml, metrics.csv, steps.jsonl, checkpoints/, hf/."""
    train_text: str
    """Training documents: a file, folder, glob or address of text, or a folder that `arlow data tokenize` made."""
    validation_text: str
    """Validation documents, in the same forms."""
    row_length: int
    """Tokens of a packed row."""
    batch_size: int
    """Rows of a batch."""
    policy: dict[str, Any]
    """Treatment of each component of the model: frozen, train or lora, or a mapping (see `PartPolicy`)."""
    run: RunConfig
    """Steps, seed and precision."""
    optim: OptimConfig
    """Optimizer and learning rate."""
    checkpoint: Path | None = None
    """Folder of the text model that the run starts from (`hf` of a text run); null: random weights."""
    tokenizer: Path | None = None
    """Folder of a saved tokenizer; null: the checkpoint's."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of ArlowConfig for random weights. size, from 0.02b to 3b, sets those that are not given (see
    `training.sizes`); vocab_size is the tokenizer's unless given."""
    max_tokens: int | None = None
    """Approximate number of training tokens to read; null: all."""
    packed_folder: Path | None = None
    """Folder that keeps tokenised text for the next run; null: `packed` in the run folder."""
    max_bad_fraction: float = MAX_BAD_FRACTION
    """Largest share of unusable lines or rows, which are skipped and counted by reason; above it no run starts."""

    def __post_init__(self) -> None:
        refuse_idle_pathway(read_policy(self.policy), ("cross_attention",), "a text recipe has no images")
        check_rate(self.optim)
        check_share(self.max_bad_fraction)
        for name in ("row_length", "batch_size", "max_tokens"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        if self.checkpoint is None:
            check(
                self.tokenizer is not None,
                "tokenizer is missing; name the folder of one, or a checkpoint to go on from",
            )
            check(bool(self.model), "model is missing; give fields of ArlowConfig, or a checkpoint")
        for name in ("tokenizer", "model"):
            given = bool(getattr(self, name)) and self.checkpoint is not None
            check(not given, f"{name} is given beside checkpoint, which has its own; leave one of them out")


@dataclass(frozen=True, kw_only=True)
class ImageTextRecipe:
    """Teaches a text checkpoint to read images, or trains a vision-language model further."""

    stage: Literal["image_text"]
    """Kind of the recipe."""
    run_dir: Path
    """Run folder: config.yaml, metrics.csv, steps.jsonl, checkpoints/, hf/."""
    sources: list[SourceConfig]
    """Training data; a batch has samples_per_batch texts of each source, or all are packed into rows."""
    validation_sources: list[SourceConfig]
    """Validation data; each is measured by itself."""
    policy: dict[str, Any]
    """Treatment of each component of the model: frozen, train or lora, or a mapping (see `PartPolicy`)."""
    run: RunConfig
    """Steps, seed and precision."""
    optim: OptimConfig
    """Optimizer and learning rate."""
    text_checkpoint: Path | None = None
    """Folder of a trained text model (`hf` of a text run), which gets an encoder, a projector and cross-attention."""
    vision: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Encoder for it: fields of ArlowVisionConfig (timm_name, image_size, blocks, prefix_tokens, transform), and
    weights: a file of its weights under timm's names, safetensors or a state dict of `torch.save`."""
    checkpoint: Path | None = None
    """Folder of a vision-language model (`hf` of such a run) to train further, in place of these two."""
    cache_features: Path | None = None
    """Folder for caching the frozen encoder's patch tokens; null: images are encoded in every step."""
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Dtype of the cache: bfloat16 for values that float16 cannot hold, float32 for the same losses as without it."""
    packing: PackingConfig | None = None
    """Packs training samples into rows of one width; null: samples_per_batch texts of each source."""
    max_length: int = 128
    """Largest number of tokens of a text, prompt included; longer ones are cut."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of ArlowVLConfig for text_checkpoint: projector, projector_latents and gate_opening."""
    max_bad_fraction: float = MAX_BAD_FRACTION
    """Largest share of a source's samples, or of its questions, that may be unusable: they are skipped and counted by
    reason. Above it the run does not start, or ends if images are decoded during training (no cache). 0: none."""

    def __post_init__(self) -> None:
        policy = read_policy(self.policy)
        check_rate(self.optim)
        check_share(self.max_bad_fraction)
        check(self.max_length >= 2, f"max_length must be at least 2, got {self.max_length}")
        self._check_beginning()
        check(bool(self.sources), "sources is empty; name at least one")
        check(bool(self.validation_sources), "validation_sources is empty; name at least one")
        for sources in (self.sources, self.validation_sources):
            twice = [name for name, uses in Counter(source.name for source in sources).items() if uses > 1]
            check(not twice, f"two sources are called {', '.join(twice)}; give each a name of its own")
        if all(source.kind == "text" for source in self.sources):
            pathway = ("vision", "projector", "cross_attention")
            refuse_idle_pathway(policy, pathway, "all sources are of kind text, without images")
        self._check_shares()
        trains_encoder = "vision" in policy and policy["vision"].is_trained
        check(
            not (trains_encoder and self.cache_features),
            "cache_features needs policy.vision frozen; set cache_features to null",
        )

    def _check_beginning(self) -> None:
        """Checks that the run starts either from a text model and an encoder, or from a vision-language model."""
        both = self.text_checkpoint is not None and self.checkpoint is not None
        check(not both, "text_checkpoint and checkpoint are both given; name the one that the run starts from")
        if self.checkpoint is not None:
            for name in ("vision", "model"):
                check(not getattr(self, name), f"{name} is given beside checkpoint, which has its own; leave it out")
            return
        check(self.text_checkpoint is not None, "text_checkpoint is missing (or checkpoint): name what to start from")
        weights = self.vision.get("weights")
        check(
            isinstance(weights, str | Path) and str(weights).strip() != "",
            f"vision.weights must name a file of the encoder's weights, got {weights!r}",
        )

    def _check_shares(self) -> None:
        """Checks that each source states its share in the form that packed or padded batches need."""
        for source in self.validation_sources:
            check(source.samples_per_batch is not None, f"validation source {source.name} needs samples_per_batch")
            idle = [name for name in ("weight", "epochs") if getattr(source, name) is not None]
            check(
                not idle, f"validation source {source.name}: {' '.join(idle[:1])} is for training alone; leave it out"
            )
        for source in self.sources:
            packs = self.packing is not None
            wrong = [name for name in ("weight", "epochs") if not packs and getattr(source, name) is not None]
            wrong += ["samples_per_batch"] * (packs and source.samples_per_batch is not None)
            needs = "without" if packs else "with"
            check(not wrong, f"source {source.name}: {' '.join(wrong[:1])} goes {needs} packing; leave it out")
            check(packs or source.samples_per_batch is not None, f"source {source.name} needs samples_per_batch")
        if self.packing is None:
            return
        if self.packing.row_tokens < self.max_length:
            raise ValueError(
                f"packing.row_tokens ({self.packing.row_tokens}) must be at least max_length ({self.max_length})"
            )
        mixture_of(self.packing, self.sources, {source.name: 1 for source in self.sources})  # the sizes come later


Recipe = TextRecipe | ImageTextRecipe
RECIPES: dict[str, type[Recipe]] = {"text": TextRecipe, "image_text": ImageTextRecipe}


def validation_columns_of(recipe: Recipe) -> tuple[str, ...]:
    """Returns the names of a recipe's validation metrics, of which smaller values are better."""
    if isinstance(recipe, TextRecipe):
        return "validation_loss", "validation_bits_per_byte"
    return "validation_loss", *(f"validation_loss_{source.name}" for source in recipe.validation_sources)


def to_plain(value: Any) -> Any:
    """Returns a recipe as plain values for YAML and checkpoints: mappings, lists, strings and numbers."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def first_difference(old: Any, new: Any, key: str = "") -> str | None:
    """Returns the first difference of two plain recipes as `optim.lr was 0.1 and is 0.2`; None if they are equal."""
    return next(iter(differences(old, new, key)), None)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Returns a sentence for each key that differs; sources go by name: `sources.captions.weight was 1 and is 2`."""
    are_lists = isinstance(old, list) and isinstance(new, list)
    if are_lists and all(isinstance(item, Mapping) and "name" in item for item in [*old, *new]):
        old, new = ({item["name"]: item for item in items} for items in (old, new))
        if list(old) != list(new):
            old, new = list(old), list(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = dict.fromkeys([*old, *new])
        inner = (differences(old.get(name), new.get(name), f"{key}.{name}" if key else name) for name in names)
        return [sentence for sentences in inner for sentence in sentences]
    return [] if old == new else [f"{key} was {old} and is {new}"]


def refuse_idle_pathway(policy: Policy, components: Sequence[Component], why: str) -> None:
    """Raises ValueError if a component is trained that no images reach, so that only weight decay would change it."""
    for name in components:
        check(
            not (name in policy and policy[name].is_trained),
            f"policy.{name} is to be trained, but {why}, so it would learn nothing; set it to frozen",
        )


def check_rate(optim: OptimConfig) -> None:
    """Raises ValueError if there is no learning rate, neither given nor from the width of a new text model."""
    check(
        optim.lr is not None,
        "optim.lr is missing; give the peak learning rate (only a text recipe whose model has a size or a hidden_size "
        "may leave it out)",
    )


def check_share(max_bad_fraction: float) -> None:
    check(0 <= max_bad_fraction <= 1, f"max_bad_fraction is a share from 0 to 1, got {max_bad_fraction}")
