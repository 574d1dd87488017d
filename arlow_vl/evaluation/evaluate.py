"""The whole evaluation of a vision-language model: test sets, controls, text as before; leaves a result folder."""

import platform
import shlex
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from arlow_vl.data.images import cache_images
from arlow_vl.data.shards import ShardScan
from arlow_vl.errors import CheckpointError, DataError
from arlow_vl.evaluation.held_out_text import compare_text, describe_text
from arlow_vl.evaluation.provenance import describe_sources, summarise_folders
from arlow_vl.evaluation.results import write_json
from arlow_vl.evaluation.runner import (
    ANSWER_TOKENS,
    CAPTION_TOKENS,
    Evaluation,
    choose_questions,
    read_split,
)
from arlow_vl.models.folders import load_text_model, load_vision_language_model, sha256_of_weights
from arlow_vl.progress import ProgressLine

CAPTION_TESTS = ("test-known", "test-novel")
TEXT_ROWS = 256


def evaluate(
    model_folder: Path,
    data: Path,
    output: Path,
    features: Path,
    *,
    features_dtype: str = "float16",
    text_model: Path | None,
    questions: int | None,
) -> None:
    """Writes predictions of the model and its controls, text.json and meta.json into `output`.

    Raises:
        DataError: test data are missing; names the command that fetches them.
        CheckpointError: the model folder is not a vision-language model, or the text model has another vocabulary.
    """
    start = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is known before anything is computed
    options = {"--model": model_folder, "--text-model": text_model, "--data": data, "--features": features}
    options |= {"--features-dtype": features_dtype, "--questions": questions, "--output": output}
    captions = {split: read_split(data / "captions", split) for split in ("train", *CAPTION_TESTS)}
    vqa = {split: read_split(data / "easy-vqa", split) for split in ("train", "test")}
    model, processor = load_vision_language_model(model_folder)
    asked = choose_questions(vqa["test"], questions)
    seconds = {}
    # First, since it takes little time and may refuse its text.
    text = compare_with_text_model(model, processor.tokenizer, text_model, data, features) if text_model else {}

    test_images = {sample.name: sample for sample, _ in asked}
    samples = [*(s for split in captions.values() for s in split), *test_images.values()]
    transform = processor.image_processor.transform
    scan = ShardScan(samples=samples)
    images = cache_images(
        [scan],
        model.model.vision,
        transform,
        features,
        dtype=getattr(torch, features_dtype),
        on_progress=ProgressLine("encoder features", "images"),
    )
    if scan.skipped:
        reason, example = next(iter(scan.examples.items()))
        raise DataError(
            f"{scan.skipped.total():,} images cannot be used, {example} first ({reason}); scores leave none out: "
            "mend the shards (`arlow data verify` lists them)"
        )
    seconds["encoder features"] = time.monotonic() - start

    evaluation = Evaluation(model, processor.tokenizer, images, output)
    train_features = evaluation.pooled(captions["train"])
    for split in CAPTION_TESTS:
        began = time.monotonic()
        evaluation.captions(f"captions-{split}", captions[split], captions["train"], train_features)
        seconds[f"captions-{split}"] = time.monotonic() - began
    began = time.monotonic()
    evaluation.questions("easy-vqa-test", asked, vqa["train"])
    seconds["easy-vqa-test"] = time.monotonic() - began

    write_json(output / "text.json", text)
    meta = describe(model_folder, model) | {"wall_seconds": seconds}
    uses = {"captions": [s for split in captions.values() for s in split], "questions": test_images.values()}
    meta["data"] = describe_sources(uses)
    meta["summary"] = summarise_folders([data / "captions", data / "easy-vqa"])
    meta["reproduce"] = [command_line("arlow evaluate", options), shlex.join(["arlow", "report", str(output)])]
    meta["shards"] = sorted({str(sample.shard.resolve()) for sample in samples if "test" in sample.shard.name})
    meta["curves"] = learning_curves([text_model, model_folder], output, text)
    write_json(output / "meta.json", meta)


def compare_with_text_model(model: Any, tokenizer: Any, folder: Path, data: Path, cache: Path) -> dict[str, Any]:
    """Held-out text before and after the vision stage, printed and returned."""
    text_model, text_tokenizer = load_text_model(folder)
    if text_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise CheckpointError(
            f"{folder} has another vocabulary than the model; name the text model that it was built from"
        )
    files = data / "text" / "validation.jsonl", data / "text" / "train.jsonl"
    text = compare_text(text_model, model, tokenizer, *files, cache / "packed", max_rows=TEXT_ROWS)
    print(describe_text(text))
    return text


def command_line(command: str, options: dict[str, Any]) -> str:
    """The command with those options that have a value, as a shell takes it."""
    return shlex.join(
        [*command.split(), *(str(word) for pair in options.items() if pair[1] is not None for word in pair)]
    )


def describe(model_folder: Path, model: Any) -> dict[str, Any]:
    """What the report says about how the numbers came to be."""
    openings = model.gate_openings().items()
    return {
        "title": "Arlow-VL: captions and answers",
        "checkpoint": {"path": str(model_folder), "sha256": sha256_of_weights(model_folder)},
        "decode": {
            "method": "greedy",
            "most tokens of a caption": CAPTION_TOKENS,
            "most tokens of an answer": ANSWER_TOKENS,
            "encoder": model.config.vision_config.timm_name,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "timm", "lightning")},
        },
        "hardware": f"{torch.get_num_threads()} CPU threads ({platform.machine()}), float32",
        "gates": {
            f"layer {layer}, {part}": value
            for layer, pair in openings
            for part, value in zip(("attention", "MLP"), pair, strict=True)
        },
    }


def learning_curves(models: list[Path | None], output: Path, text: dict[str, Any]) -> list[dict[str, Any]]:
    """The curves of the runs that the models came out of, where their metrics lie beside them."""
    curves = []
    for title, folder in zip(("Text stage", "Vision stage"), models, strict=True):
        if folder is None or not (folder.parent / "metrics.csv").exists():
            continue
        curve = {"title": title, "run": str(folder.parent.resolve())}
        if title == "Text stage" and "unigram_entropy" in text:
            curve["unigram_entropy"] = text["unigram_entropy"]
        curves.append(curve)
    return curves
