"""Recipes: what `arlow fit` runs, as frozen dataclasses filled from YAML and the command line."""

import argparse
import contextlib
import dataclasses
import re
import tempfile
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from arlow_vl.data.bad_share import MAX_BAD_FRACTION
from arlow_vl.models.arlow.spelling import closest
from arlow_vl.training.checkpoint_names import steps_done
from arlow_vl.training.policy import Component, Policy, read_policy
from arlow_vl.training.recipe_files import read_yaml, refuse_unknown_keys, refuse_unknown_option, refuse_wrong_shapes
from arlow_vl.training.settings import OptimConfig, PackingConfig, RunConfig, SourceConfig, check, mixture_of
from arlow_vl.training.sizes import lr_of_width, with_size
from arlow_vl.yaml_text import told_fault


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Pretrains the decoder on text."""

    stage: Literal["text"]
    """Which kind of recipe this is."""
    run_dir: Path
    """The run folder: config.yaml, metrics.csv, steps.jsonl, checkpoints/, hf/."""
    train_text: str
    """Training documents: a file, folder, glob or address of text, or a folder that `arlow data tokenize` made."""
    validation_text: str
    """Validation documents, likewise."""
    row_length: int
    """Tokens of a packed row."""
    batch_size: int
    """Rows of a batch."""
    policy: dict[str, Any]
    """What is trained: for each component of the model frozen, train or lora, or a mapping (see `PartPolicy`)."""
    run: RunConfig
    """Steps, seed and precision."""
    optim: OptimConfig
    """Optimizer and learning rate."""
    checkpoint: Path | None = None
    """Folder of the text model that the run starts from (`hf` of a text run); null: random weights."""
    tokenizer: Path | None = None
    """Folder of a saved tokenizer; null: the checkpoint's."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of ArlowConfig where weights are random, or size: 0.02b to 3b, which brings those that are not given (see
    `training.sizes`); vocab_size is the tokenizer's unless given."""
    max_tokens: int | None = None
    """Training tokens to read, about; null: all."""
    packed_folder: Path | None = None
    """Where tokenised text is kept for the next run; null: `packed` in the run folder."""
    max_bad_fraction: float = MAX_BAD_FRACTION
    """Largest share of unusable lines or rows, which are skipped and counted by reason; over it no run starts."""

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
    """Teaches a text checkpoint to read images."""

    stage: Literal["image_text"]
    """Which kind of recipe this is."""
    run_dir: Path
    """The run folder: config.yaml, metrics.csv, steps.jsonl, checkpoints/, hf/."""
    sources: list[SourceConfig]
    """Training data; every batch takes its samples_per_batch of each, or all are packed into rows."""
    validation_sources: list[SourceConfig]
    """Validation data; each is measured by itself."""
    policy: dict[str, Any]
    """What is trained: for each component of the model frozen, train or lora, or a mapping (see `PartPolicy`)."""
    run: RunConfig
    """Steps, seed and precision."""
    optim: OptimConfig
    """Optimizer and learning rate."""
    text_checkpoint: Path | None = None
    """Folder of a trained text model (`hf` of a text run) that gets an encoder, a projector and cross-attention."""
    vision: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of that encoder: fields of ArlowVisionConfig (timm_name, image_size, blocks, prefix_tokens, transform), and
    weights: a file of its weights under timm's names, safetensors or a state dict of `torch.save`."""
    checkpoint: Path | None = None
    """In place of these two, folder of a vision-language model (`hf` of such a run) that is trained on."""
    cache_features: Path | None = None
    """Folder in which the frozen encoder's patch tokens are kept; null: encode in every step."""
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """As what they are kept: bfloat16 for tokens that float16 cannot hold, float32 for the losses without a cache."""
    packing: PackingConfig | None = None
    """Pack training samples into rows of one width; null: samples_per_batch texts of each source."""
    max_length: int = 128
    """Most tokens of a text, prompt included; what is over is cut."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of ArlowVLConfig, with text_checkpoint: projector, projector_latents and gate_opening."""
    max_bad_fraction: float = MAX_BAD_FRACTION
    """Largest share of a source's samples, or of its questions, that may be unusable: they are skipped and counted by
    reason. Over it the run does not start, or ends where images are decoded on the way (no cache). 0: none may be."""

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
        """Either a text model and an encoder, or a model that has all."""
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
        """Each source says its share in the way that the batches are made."""
        for source in self.validation_sources:
            check(source.samples_per_batch is not None, f"validation source {source.name} needs samples_per_batch")
            idle = [name for name in ("weight", "epochs") if getattr(source, name) is not None]
            check(not idle, f"validation source {source.name}: {' '.join(idle[:1])} is of training; leave it out")
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
    """What each validation of a recipe gives; the smaller, the better."""
    if isinstance(recipe, TextRecipe):
        return "validation_loss", "validation_bits_per_byte"
    return "validation_loss", *(f"validation_loss_{source.name}" for source in recipe.validation_sources)


def parse_recipe(argv: list[str], *, look: Callable[[Recipe], None] = lambda recipe: None) -> Recipe:
    """A recipe from `--config FILE.yaml` and overrides such as `--optim.lr 3e-4`.

    Args:
        look: Given the recipe before the fields of its model are checked, which loads libraries that take seconds.

    Raises:
        ValueError: in one sentence, with the closest known key for a misspelt one.
    """
    front = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    front.add_argument("--config", type=Path)
    try:
        known, overrides = front.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError("--config has no value; name a recipe with --config FILE.yaml") from error
    if known.config is None:
        misspelt = next((word for word in argv if closest(word.partition("=")[0], ["--config"])), None)
        hint = f"unknown option {misspelt}; did you mean --config? " if misspelt else ""
        raise ValueError(f"{hint}name a recipe with --config FILE.yaml; experiments/ has some")
    values = read_yaml(known.config)
    recipe_class = RECIPES.get(str(values.get("stage")))
    if recipe_class is None:
        raise ValueError(f"{known.config}: stage must be {' or '.join(RECIPES)}, got {values.get('stage')!r}")
    refuse_unknown_keys(values, recipe_class, str(known.config))
    for option in (argument for argument in overrides if argument.startswith("--")):
        refuse_unknown_option(option, recipe_class)
    with _named(known.config):
        refuse_wrong_shapes(values, recipe_class)
        recipe = _fill(recipe_class, known.config, overrides)
    look(recipe)
    from arlow_vl.training.model_fields import check_model_fields  # imports transformers

    with _named(known.config):
        check_model_fields(recipe)
    return recipe


@contextlib.contextmanager
def _named(config: Path) -> Iterator[None]:
    """Errors name the recipe that they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"recipe {config}: {error}") from error


def build_parser(recipe_class: type[Recipe]) -> Any:
    """The jsonargparse parser of one kind of recipe."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="arlow fit", exit_on_error=False, print_config=None)
    parser.add_argument("--config", action="config", help="YAML file with the keys below")
    parser.add_class_arguments(recipe_class, as_group=False)
    return parser


def _fill(recipe_class: type[Recipe], config: Path, overrides: list[str]) -> Recipe:
    parser = build_parser(recipe_class)
    arguments, inner = _part_inner(overrides, typing.get_type_hints(recipe_class))
    try:
        namespace = parser.parse_args(["--config", str(config), *arguments])
        namespace.pop("config")
        refuse_wrong_shapes(namespace.as_dict(), recipe_class)  # those of options too
        values = _built(parser, namespace)
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(_plain_error(error)) from error
    for names, text in inner:
        _set_inner(values, names, text)
        refuse_wrong_shapes(values[names[0]], dict[str, Any], names[0])
    if recipe_class is TextRecipe:
        values |= _sized(values["model"], values["optim"])
    return recipe_class(**values)


def _built(parser: Any, namespace: Any) -> dict[str, Any]:
    """The values of a recipe, its groups of keys as their classes.

    Raises:
        ValueError: a class refuses what it is given. A run that has done more steps than it now asks for is told of
            that alone: whoever mends the rest would meet it next.
    """
    try:
        return vars(parser.instantiate(namespace))
    except ValueError:
        done, asked = steps_done(Path(namespace.run_dir)), namespace.run.max_steps
        if asked < done:
            raise ValueError(
                f"run.max_steps is {asked}, but {done} steps of {namespace.run_dir} are done; use another run_dir"
            ) from None
        raise


def _sized(model: dict[str, Any], optim: OptimConfig) -> dict[str, Any]:
    """`model` with the fields of its size, and `optim` with the rate that goes with the width where it names none."""
    model = with_size(model)
    width = model.get("hidden_size")
    if optim.lr is None and isinstance(width, int) and width > 0:
        optim = dataclasses.replace(optim, lr=lr_of_width(width))
    return {"model": model, "optim": optim}


UNION = (
    r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - (.*?) "
    r"Given value type: .*? Given value: ?"
)
"""What jsonargparse says of a value that is none of several kinds, in an order that differs between its versions."""
NO_NULL = "Expected a NoneType"


def _plain_error(error: Exception) -> str:
    """What jsonargparse found, without the classes on its way to the key."""
    text = re.sub(r"<class '(\w+)'>", r"\1", " ".join(str(error).split()))
    if found := re.search(UNION, text):
        kinds = [kind for kind in found[1].split(" - ") if kind != NO_NULL]
        if all(kind.startswith("Expected a ") for kind in kinds):
            known = ", ".join(kind.removeprefix("Expected a ") for kind in kinds)
            text = f"{text[: found.start()]}Expected a {known} or null. Got value: {text[found.end() :]}"
        else:  # of a group of keys, in which something is wrong
            text = f"{text[: found.start()]}{kinds[0]}"
    text = text.replace("typing.Literal", "value of ")
    keys = re.findall(r'Parser key "([\w.]+)":', text)
    if len(keys) < 2:
        return text.strip()
    found = text.rpartition(f'Parser key "{keys[-1]}":')[2].strip()
    return f"{'.'.join(keys)}: {found}"


def _part_inner(overrides: list[str], annotations: Mapping[str, Any]) -> tuple[list[str], list[tuple[list[str], str]]]:
    """Parts options such as `--vision.transform.max_tiles 4`, as names and text, from those for jsonargparse, which
    keeps but the last of them in a free mapping, and that as text."""
    others, inner = [], []
    arguments = iter(overrides)
    for argument in arguments:
        option, has_text, text = argument.partition("=")
        names = option.removeprefix("--").split(".")
        if option.startswith("--") and len(names) > 2 and typing.get_origin(annotations.get(names[0])) is dict:
            inner.append((names, text if has_text else next(arguments, "")))
        else:
            others.append(argument)
    return others, inner


def _set_inner(values: dict[str, Any], names: list[str], text: str) -> None:
    from jsonargparse import get_loader

    for name in names[:-1]:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ValueError(f"--{'.'.join(names)}: {name} is {values!r}, which has no fields")
    try:
        values[names[-1]] = get_loader("yaml")(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--{'.'.join(names)} is not YAML: {told_fault(error)}") from error


def recipe_of_values(values: Mapping[str, Any], *, where: str) -> Recipe:
    """A recipe that `to_plain` has made plain, as checkpoints hold it. Raises ValueError where it cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(dict(values)))
        try:
            return parse_recipe(["--config", str(path)])
        except ValueError as error:
            raise ValueError(str(error).replace(f"recipe {path}", f"the recipe in {where}")) from error


def to_plain(value: Any) -> Any:
    """A recipe as what YAML and checkpoints can hold: mappings, lists, strings and numbers."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def first_difference(old: Any, new: Any, key: str = "") -> str | None:
    """`optim.lr was 0.1 and is 0.2` for the first of two plain recipes' keys that differs, None if none does."""
    return next(iter(differences(old, new, key)), None)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Such a sentence for each key that differs; sources go by name: `sources.captions.weight was 1 and is 2`."""
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
    """Raises ValueError where something is trained that only batches with images reach: decay alone would change it."""
    for name in components:
        check(
            not (name in policy and policy[name].is_trained),
            f"policy.{name} is to be trained, but {why}, so it would learn nothing; set it to frozen",
        )


def check_rate(optim: OptimConfig) -> None:
    check(
        optim.lr is not None,
        "optim.lr is missing; give the peak learning rate (only a text recipe whose model has a size or a hidden_size "
        "may leave it out)",
    )


def check_share(max_bad_fraction: float) -> None:
    check(0 <= max_bad_fraction <= 1, f"max_bad_fraction is a share from 0 to 1, got {max_bad_fraction}")
