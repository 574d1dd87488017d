"""Model card of an exported folder, written only from the files of the run and its evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from arlow_vl.errors import CheckpointError
from arlow_vl.evaluation.provenance import NOT_STATED, read_note
from arlow_vl.evaluation.tasks.predictions import METRICS
from arlow_vl.evaluation.tasks.results import broken, read_results
from arlow_vl.evaluation.tasks.table import format_scores
from arlow_vl.printing import number_of
from arlow_vl.training.report.folder import flat

PIPELINES = {"arlow": "text-generation", "arlow_vl": "image-text-to-text"}
USE = {
    "arlow": """\
import arlow_vl
from transformers import pipeline

print(pipeline("text-generation", model="{folder}")("Once upon a time", max_new_tokens=40)[0]["generated_text"])""",
    "arlow_vl": """\
import arlow_vl
from transformers import pipeline

ask = pipeline("image-text-to-text", model="{folder}")
messages = [{{"role": "user", "content": [{{"type": "image", "path": "photo.jpg"}}]}}]
print(ask(text=messages, max_new_tokens=40, return_full_text=False)[0]["generated_text"])""",
}
LIMITS = {
    "arlow": "It continues text from its training data alone; what it writes may be wrong or offensive.",
    "arlow_vl": "It describes what its training data taught it to see; anything else it names too, but "
    "wrongly. A score beside its controls says how much of an answer comes from the image.",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that a card is written from."""

    name: str
    """Name of the folder."""
    model: Any
    weights_sha256: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Recipe of the run; empty where only a model folder was exported."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """Last line of the run's starts.jsonl."""
    trained: str = ""
    """Origin of the weights, as "those of step 4 of 6"; empty if unknown."""
    results: Sequence[Mapping[str, Any]] = ()
    """Content of each task's metrics.json."""
    change: str = ""
    """Sentence on the effect of quantisation or rounding; empty without these."""
    license: str = ""
    """Identifier of the hub, such as apache-2.0; empty: not stated."""


def scores_of(folder: Path, sha256: str | None) -> list[dict[str, Any]]:
    """Returns the scores that `arlow evaluate` wrote under a folder, one entry a task.

    Raises:
        DataError: there are none, or a file is damaged.
        CheckpointError: they are not of the model with this hash; None: they are not of a model without a hash.
    """
    results = read_results(folder)
    for one in results:
        try:
            is_of_model = one.metrics_json["model"]["sha256"] == sha256
            _metrics_of(one.metrics_json), format_scores(one.metrics_json)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise broken(one.folder / METRICS, repr(error)) from None
        if not is_of_model:
            raise CheckpointError(
                f"{folder} holds scores of another model ({one.task.name}); evaluate the one that is exported"
            )
    return [one.metrics_json for one in results]


def _metrics_of(result: Mapping[str, Any]) -> list[str]:
    return list(result["scores"]["metrics"])


def write_card(facts: Facts) -> str:
    """Returns the README.md: the hub's header, usage, training, scores and limits."""
    kind = facts.model.config.model_type
    header = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINES[kind],
        license=facts.license or None,
        tags=["arlow-vl", *(["vision-language-model"] if kind == "arlow_vl" else [])],
        metrics=sorted({name for result in facts.results for name in _metrics_of(result)}) or None,
    )
    parts = [f"---\n{header.to_yaml()}\n---", f"# {facts.name}", *_what_it_is(facts, kind), "## Use"]
    parts += ["`pip install arlow-vl`, then", f"```python\n{USE[kind].format(folder=facts.name)}\n```"]
    parts += [*_training(facts), *_scores(facts), "## Limits", LIMITS[kind]]
    parts += ["## Files", f"SHA-256 of the weights: `{facts.weights_sha256}`; of every file: `checksums.json`."]
    return "\n\n".join(parts) + "\n"


def _what_it_is(facts: Facts, kind: str) -> Iterator[str]:
    config = facts.model.config
    text = config.get_text_config()
    numbers = sum(parameter.numel() for parameter in facts.model.parameters())
    sizes = (
        f"{number_of(text.num_hidden_layers, 'layer')}, width {text.hidden_size:,}, vocabulary {text.vocab_size:,}, "
    )
    sizes += f"{text.max_position_embeddings:,} positions, {numbers:,} parameters"
    if kind == "arlow":
        yield f"A decoder-only language model ({sizes}), made with Arlow-VL."
    else:
        yield (
            f"A vision-language model, made with Arlow-VL: a decoder ({sizes} in all) reads images through gated "
            f"cross-attention in front of layers {', '.join(map(str, text.cross_attention_layers))}; the encoder is "
            f"`{config.vision_config.timm_name}`."
        )
    if facts.change:
        yield facts.change


def _training(facts: Facts) -> Iterator[str]:
    if not facts.recipe:
        return
    yield "## Training"
    parts = facts.start.get("parts", {})
    if parts:
        rows = [f"| {name} | {p['parameters']:,} | {p['trained']:,} | {p['treatment']} |" for name, p in parts.items()]
        yield "\n".join(["| part | parameters | trained | treatment |", "| --- | --- | --- | --- |", *rows])
    if sources := _sources(facts.recipe):
        rows = [f"| {name} | `{data}` | {licence} |" for name, data, licence in sources]
        yield "\n".join(["| data | source | licence |", "| --- | --- | --- |", *rows])
    versions = ", ".join(f"{name} {number}" for name, number in facts.start.get("versions", {}).items())
    if versions:
        yield f"{versions}; {facts.start.get('machine', '')}; revision {facts.start.get('revision') or NOT_STATED}."
    if facts.trained:
        yield f"Its weights are {facts.trained}."
    keys = ("stage", "run.max_steps", "run.seed", "run.precision", "optim.optimizer", "optim.lr", "optim.schedule")
    values = dict(flat(facts.recipe))
    yield "; ".join(f"{key}: {values[key]}" for key in keys if key in values) + "."


def _sources(recipe: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns name, place and licence of each training source."""
    text = [{"name": "text", "data": recipe["train_text"]}] if "train_text" in recipe else []
    rows = []
    for source in recipe.get("sources") or text:
        place = Path(str(source["data"]))
        shown = Path(*place.parts[-2:]) if place.is_absolute() else place  # no folders of the machine it was trained on
        rows.append((str(source["name"]), str(shown), read_note(place.parent).get("license", NOT_STATED)))
    return rows


def _scores(facts: Facts) -> Iterator[str]:
    if not facts.results:
        return
    yield "## Scores"
    yield "Each beside its controls, with 95% intervals over images."
    for result in facts.results:
        yield f"```\n{format_scores(result)}\n```"
