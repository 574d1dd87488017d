"""Export of a run, a checkpoint or `hf` as a model folder with a card, which is verified in a fresh process."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arlow_vl.data.trained_prompts import TrainedPrompts, read_trained_prompts
from arlow_vl.errors import CheckpointError
from arlow_vl.evaluation.tasks import perplexity
from arlow_vl.models.arlow.checkpoint_checks import refuse_fewer_bits
from arlow_vl.models.folder_files import hash_model
from arlow_vl.models.folder_hashes import sha256_of_weights
from arlow_vl.models.folder_writing import save_folder
from arlow_vl.models.open_model import PRECISIONS, open_model
from arlow_vl.models.probe import check_written
from arlow_vl.models.quantising import Scheme, load_quantised
from arlow_vl.printing import number_of
from arlow_vl.progress import ProgressLine
from arlow_vl.training.best import facts_of, read_stopped
from arlow_vl.training.build import build_products, finish_model
from arlow_vl.training.card import Facts, scores_of, write_card
from arlow_vl.training.checkpoint_io import check_same_tensors, newest_good, read_checkpoint
from arlow_vl.training.model_fields import refuse_other_settings
from arlow_vl.training.policy import read_policy
from arlow_vl.training.recipe import Recipe, to_plain
from arlow_vl.training.recipe_files import read_yaml
from arlow_vl.training.recipe_parsing import recipe_of_values
from arlow_vl.training.refusals import UNFINISHED
from arlow_vl.training.report.folder import flat, read_lines
from arlow_vl.training.stages import apply_policy, check_frozen, hash_frozen, stays
from arlow_vl.training.starts import FILE as STARTS

CARD = "README.md"
"""Name of the model card, which has no checksum, as people edit it."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """Options of an export."""

    precision: str | None = None
    """Dtype of the exported weights; None: unchanged."""
    quantise: Scheme | None = None
    """Quantisation of the decoder's linear layers; None: none."""
    shard_size: str | None = None
    """Largest size of a weight file, such as 2GB; None: the default of transformers."""
    results: Path | None = None
    """Folder of `arlow evaluate` with scores of the model for the card; None: no scores."""
    license: str = ""
    """Identifier of the hub, such as apache-2.0; empty: the card states none."""
    text: str | None = None
    """Documents for measuring the effect of precision and quantisation on bits per byte; None: not measured."""


@dataclass(frozen=True)
class Source:
    """Opened model with its origin."""

    products: tuple[Any, ...]
    """The model, then its tokenizer or processor, then how it was asked, where that is known."""
    place: Path
    """Checkpoint or model folder that was opened."""
    run: Path | None
    """Run folder of the model, None if unknown."""
    recipe: dict[str, Any]
    """Plain recipe of the run, empty if unknown."""
    trained: str
    """Origin of the weights, in words; empty if unknown."""


def export(path: Path, output: Path, wishes: Wishes = Wishes()) -> Iterator[str]:
    """Writes a model folder and yields sentences about it, once the folder is complete and verified.

    `path` is a run folder (its newest checkpoint), a checkpoint, or a model folder.

    Raises:
        CheckpointError: there is no undamaged checkpoint or model; the run's initial model has changed; the scores are
            of another model; the folder gives other outputs when a fresh process loads it.
        DataError: the scores or the text to measure cannot be read.
        ValueError: a required library is missing.
    """
    source = open_source(path)
    original, *others = source.products
    tokenizer = getattr(others[0], "tokenizer", others[0])
    documents = perplexity.read_documents(wishes.text, tokenizer) if wishes.text else []
    results = scores_of(wishes.results, hash_of(source, wishes)) if wishes.results else []
    line = ProgressLine("bits per byte before", "documents")
    before = perplexity.bits_per_byte(original.eval(), tokenizer, documents, line) if documents else 0.0
    model = changed(original.eval(), others, wishes)
    change = name_change(wishes)
    difference = 0.0

    def finish(folder: Path) -> None:
        nonlocal change, difference
        if documents:
            line = ProgressLine("bits per byte after", "documents")
            after = perplexity.bits_per_byte(model, tokenizer, documents, line)
            change += (
                f" Bits per byte of {number_of(len(documents), 'document')}: {before:.4f} before, {after:.4f} after."
            )
        difference = check_written(model, folder, output)
        facts = Facts(
            name=output.name,
            model=model,
            weights_sha256=sha256_of_weights(folder),
            recipe=source.recipe,
            start=last_start(source.run),
            trained=source.trained,
            results=results,
            change=change.strip(),
            license=wishes.license,
        )
        (folder / CARD).write_text(write_card(facts), encoding="utf-8")

    # Saved before its first use, in which bitsandbytes repacks nf4 on CPUs with AVX512-BF16 and rounds its scales.
    save_folder((model, *others), output, shard_size=wishes.shard_size, finish=finish)
    yield f"{output}: the model of {source.place}"
    if change:
        yield change.strip()
    yield f"loaded in a fresh process, its logits differ by {difference:.3g} at most"


def open_source(path: Path) -> Source:
    """Opens a run folder, checkpoint or model folder. Raises CheckpointError if it holds no undamaged model."""
    if (path / "config.json").is_file():
        opened = open_model(path, device="cpu")
        refuse_fewer_bits(path, opened.model.config)
        run = path.parent if (path.parent / "config.yaml").is_file() else None
        recipe = read_yaml(run / "config.yaml") if run else {}
        products = (opened.model, opened.processor or opened.tokenizer, *filter(None, [read_trained_prompts(path)]))
        return Source(products, path, run, recipe, trained_of(path, run, recipe))
    found = newest_good(path / "checkpoints") if (path / "checkpoints").is_dir() else path
    if found is None or not found.exists() or (found.is_dir() and found.suffix != ".ckpt"):
        raise CheckpointError(
            f"{path} holds no checkpoint; name a run folder, a step-*.ckpt of its checkpoints, or a model folder"
        )
    checkpoint = read_checkpoint(found)
    recipe = recipe_of_values(checkpoint["recipe"], where=str(found))
    run, trained = found.parent.parent, f"those of step {checkpoint['global_step']} of {recipe.run.max_steps}"
    products = (*build_trained(recipe, checkpoint, found), *prompts_of(checkpoint, run))
    return Source(products, found, run, to_plain(recipe), trained)


def trained_of(folder: Path, run: Path | None, recipe: dict[str, Any]) -> str:
    """Returns words on the weights of a run's `best` or `hf`; empty for any other folder."""
    steps = dict(flat(recipe)).get("run.max_steps")
    if run is None or steps is None:
        return ""
    if best := facts_of(folder):
        return f"the best by {best['column']} ({best['value']:.4g}), those of step {best['step']} of {steps}"
    if folder.name != "hf":
        return ""
    if (run / UNFINISHED).exists():
        return "those of the run before it was made longer"
    return f"those of step {(read_stopped(run) or {'step': steps})['step']} of {steps}"


def prompts_of(checkpoint: dict[str, Any], run: Path) -> list[TrainedPrompts]:
    """Returns how a run's data ask, from its checkpoint; from `hf` if the checkpoint is of an earlier version."""
    if "trained_prompts" in checkpoint:
        return [TrainedPrompts(counts) for counts in checkpoint["trained_prompts"]]
    return [*filter(None, [read_trained_prompts(run / "hf")])]


def changed(model: Any, others: list[Any], wishes: Wishes) -> Any:
    """Returns the model in the requested precision and quantisation."""
    if wishes.precision:
        model = model.to(PRECISIONS[wishes.precision])
    if wishes.quantise is None:
        return model
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "whole"
        save_folder((model, *others), folder)
        return load_quantised(model, folder, wishes.quantise)


def name_change(wishes: Wishes) -> str:
    """Returns a sentence on the precision or quantisation, empty if neither is requested."""
    if wishes.quantise:
        library = {"int8": "torchao's int8, a scale a row", "nf4": "bitsandbytes' nf4"}[wishes.quantise]
        return f"The decoder's linear layers are in {library}."
    return f"Weights are in {wishes.precision}." if wishes.precision else ""


def hash_of(source: Source, wishes: Wishes) -> str | None:
    """Returns the hash by which `arlow evaluate` knows the exported model: that of its folder, or of its run's `hf`.

    None if the exported tensors are not those of the folder, as they are of another checkpoint, rounded or quantised.

    Raises:
        CheckpointError: the run has no `hf`.
    """
    folder, model = folder_of(source), source.products[0]
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist, so no scores belong to this model; leave --scores out")
    is_rounded = wishes.precision is not None and PRECISIONS[wishes.precision] != model.dtype
    if wishes.quantise or is_rounded or not (folder == source.place or holds(folder, model)):
        return None
    return hash_model(folder)


def holds(folder: Path, model: Any) -> bool:
    """Returns True if a model folder holds exactly the model's tensors, bit for bit."""
    there, here = open_model(folder, device="cpu").model.state_dict(), model.state_dict()
    return there.keys() == here.keys() and all(
        there[name].dtype == tensor.dtype and there[name].equal(tensor) for name, tensor in here.items()
    )


def folder_of(source: Source) -> Path:
    """Returns the model folder that was opened, else `hf` of the run."""
    return source.place if (source.place / "config.json").is_file() else (source.run or source.place) / "hf"


def last_start(run: Path | None) -> dict[str, Any]:
    """Returns the last line of a run's starts.jsonl, {} if there is none."""
    starts = list(read_lines(run / STARTS, lambda line: line)) if run else []
    return starts[-1] if starts else {}


def build_trained(recipe: Recipe, checkpoint: dict, found: Path) -> tuple:
    """Returns the products of a run with a checkpoint's weights, or with their moving average if the run has one.

    Raises:
        CheckpointError: the run's initial model has changed since.
    """
    policy = read_policy(recipe.policy)
    torch.manual_seed(recipe.run.seed)  # for frozen tensors with random initial values
    model, *others = build_products(recipe)
    refuse_other_settings(checkpoint.get("model_fields", {}), model.config)
    apply_policy(model, policy)
    saved = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    state = model.state_dict()
    check_same_tensors(saved, {name: tensor for name, tensor in state.items() if not stays(name, policy)})
    model.load_state_dict({**state, **saved})
    average = checkpoint["callbacks"].get("MovingAverage", {})
    model.load_state_dict(average, strict=False)  # a second step, as the average has tied tensors once
    try:
        check_frozen(checkpoint["callbacks"]["FrozenTensorsCheck"], hash_frozen(model, policy))
    except ValueError as error:
        raise CheckpointError(f"the initial model of the run of {found} has changed: {error}") from error
    finish_model(model)
    return model, *others
