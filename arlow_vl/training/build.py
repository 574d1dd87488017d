"""Building a recipe's model, data, and the parts that are saved with the model."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from arlow_vl.data.images import CachedImages, DecodedImages, cache_sample_images
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.prompts import stop_token_ids
from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.chat_arlow import IMAGE_TOKEN
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.layout_arlow_vl import layout_of
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.folder_hashes import as_dtype
from arlow_vl.models.folder_writing import refuse_changed_weights
from arlow_vl.models.folders import check_folder, load_tokenizer, load_weights
from arlow_vl.progress import ProgressLine
from arlow_vl.training.adapters import merge_adapters
from arlow_vl.training.compiling import blocks_of, compile_blocks
from arlow_vl.training.components import component_of, is_adapter
from arlow_vl.training.datamodules import StageData, TextData
from arlow_vl.training.image_text_data import ImageTextData, check_refused_images, checked_sources
from arlow_vl.training.memory import refuse_too_large
from arlow_vl.training.model_fields import config_of, vision_config_of
from arlow_vl.training.modules import ImageTextModule, StageModule, TextModule
from arlow_vl.training.policy import read_policy
from arlow_vl.training.ranks import is_first
from arlow_vl.training.recipe import ImageTextRecipe, Recipe, TextRecipe
from arlow_vl.training.stages import check_policy, stays
from arlow_vl.training.strategies import device_type_of
from vision.transform import ImageTransform
from vision.weights import load_encoder_weights


@dataclass(frozen=True)
class Stage:
    """Model, data and products of a recipe, ready to be trained."""

    module: StageModule
    data: StageData
    products: tuple[Any, ...]
    """Objects that are saved into `hf` by their `save_pretrained`: the model, then its tokenizer or processor."""


def build_stage(recipe: Recipe) -> Stage:
    """Builds the stage of a recipe, its blocks checkpointed or compiled as `run` asks."""
    stage = build_text(recipe) if isinstance(recipe, TextRecipe) else build_image_text(recipe)
    if recipe.run.gradient_checkpointing:
        model: Any = stage.module.model
        model.activation_checkpointing_enable()
    if recipe.run.compile:  # rows of text have one size; batches with images are ragged
        compile_blocks(blocks_of(stage.module.model), dynamic=None if isinstance(recipe, TextRecipe) else True)
    return stage


def finish_model(model: Any) -> None:
    """Turns a trained model into the one that is saved, in place: adapters are merged into the weights."""
    if any(is_adapter(name) for name, _ in model.named_parameters()):
        merge_adapters(model)


def build_products(recipe: Recipe) -> tuple[Any, ...]:
    """Returns a run's initial model, before its policy is applied, and its tokenizer or processor. Reads no data."""
    if isinstance(recipe, ImageTextRecipe):
        return image_text_products(recipe, image_text_beginning(recipe)[0])
    tokenizer, config = text_beginning(recipe)
    return text_model(recipe, config), tokenizer


def text_beginning(recipe: TextRecipe) -> tuple[Any, ArlowConfig]:
    """Returns the initial tokenizer and configuration of a text run. Raises CheckpointError, ValueError."""
    checked = check_beginning(recipe.checkpoint, "arlow") if recipe.checkpoint else None
    beginning = recipe.checkpoint or recipe.tokenizer
    assert beginning is not None  # see the recipe
    tokenizer = load_tokenizer(beginning)
    return tokenizer, checked or text_config_of(recipe, tokenizer, beginning)


def check_beginning(folder: Path, expected: str) -> Any:
    """Returns the configuration of the model folder that a run starts from.

    Raises:
        CheckpointError: the folder is incomplete or quantised, or its weights differ from its checksums, where it has
            these.
    """
    config = check_folder(folder, expected, may_be_quantised=False)
    if is_first():  # the others build after it, and train what it has loaded
        refuse_changed_weights(folder)
    return config


def text_model(recipe: TextRecipe, config: ArlowConfig) -> ArlowForCausalLM:
    """Returns the model of the recipe's checkpoint, or one with random weights."""
    if recipe.checkpoint:
        return in_own_dtype(trainable(ArlowForCausalLM, recipe.checkpoint), recipe)
    return in_own_dtype(ArlowForCausalLM(config), recipe, is_random=True)


def in_own_dtype(model: Any, recipe: Recipe, *, is_random: bool = False) -> Any:
    """Returns the model with its weights in the dtype of the run's precision.

    This happens once, before anything else, so that checkpoints, hashes of frozen tensors and estimates of memory all
    see the same dtype.

    Raises:
        ValueError: frozen weights that were trained before would be rounded.
    """
    if recipe.run.precision != "bf16-true":
        return model
    policy = read_policy(recipe.policy)
    check_policy(model, policy)
    for name, tensor in {} if is_random else model.state_dict().items():
        is_rounded = tensor.is_floating_point() and as_dtype(tensor, "bfloat16").dtype != torch.bfloat16
        if is_rounded and stays(name, policy):
            raise ValueError(
                f"run.precision bf16-true would round {name}, which policy.{component_of(name)} keeps as it is; set it "
                "to bf16-mixed, or begin with weights in bfloat16"
            )
    return model.to(torch.bfloat16)


def image_text_beginning(recipe: ImageTextRecipe) -> tuple[Any, Any]:
    """Returns the initial tokenizer and configuration of an image-text run. Raises CheckpointError if damaged."""
    beginning = recipe.checkpoint or recipe.text_checkpoint
    assert beginning is not None  # see the recipe
    config = check_beginning(beginning, "arlow_vl" if recipe.checkpoint else "arlow")
    refuse_unsaveable_settings(beginning / "generation_config.json")
    return load_tokenizer(beginning), config


def refuse_unsaveable_settings(path: Path) -> None:
    """Raises CheckpointError for settings of generation that transformers reads, but not saves beside other ends."""
    try:
        if path.is_file():
            GenerationConfig.from_pretrained(path.parent).validate(strict=True)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: these settings contradict each other, so the trained model could not be saved; correct them: "
            f"{' '.join(str(error).split()):.400}"
        ) from error


def refuse_beyond_positions(key: str, tokens: int, config: Any, *, otherwise: str = "") -> None:
    """Raises ValueError if texts of so many tokens are longer than the model has positions."""
    positions = config.get_text_config().max_position_embeddings
    if tokens > positions:
        raise ValueError(f"{key} is {tokens}, but the model has {positions} positions; lower it{otherwise}")


def image_text_products(recipe: ImageTextRecipe, tokenizer: Any) -> tuple[Any, ArlowProcessor]:
    """Returns the initial model of an image-text run and its processor."""
    if recipe.checkpoint:
        model = trainable(ArlowVLForConditionalGeneration, recipe.checkpoint)
    else:
        model = build_vision_language_model(recipe)
    model.stop_also_at(stop_token_ids(tokenizer))
    return in_own_dtype(model, recipe), ArlowProcessor(ArlowImageProcessor.of_model(model.config), tokenizer)


def build_text(recipe: TextRecipe) -> Stage:
    """Builds the stage of a text recipe: a decoder, with random weights or a checkpoint's, and packed text."""
    tokenizer, config = text_beginning(recipe)
    otherwise = "" if recipe.checkpoint else ", or raise model.max_position_embeddings"
    refuse_beyond_positions("row_length", recipe.row_length, config, otherwise=otherwise)
    with torch.device("meta"):
        refuse_too_large(ArlowForCausalLM(config), recipe)
    data = TextData(recipe, tokenizer, config)
    model = text_model(recipe, config)
    module = TextModule(model, recipe, tokens_per_byte=data.validation_rows.tokens_per_byte)
    return Stage(module, data, (model, tokenizer))


def text_config_of(recipe: TextRecipe, tokenizer: Any, place: Path) -> ArlowConfig:
    """Returns the configuration of a new text model: the recipe's fields, and the tokenizer's special tokens.

    Raises:
        ValueError: a field is wrong, or the vocabulary is smaller than the tokenizer's.
    """
    config = config_of("model", ArlowConfig, {**token_fields(tokenizer, place), **recipe.model})
    if config.vocab_size < len(tokenizer):
        raise ValueError(
            f"model.vocab_size is {config.vocab_size}, but {recipe.tokenizer} has {len(tokenizer)} tokens; leave it out"
        )
    return config


def trainable(model_class: Any, folder: Path) -> Any:
    """Loads the model of a checked folder in float32 and training mode, with gradients for all parameters."""
    return load_weights(model_class, folder, dtype=torch.float32).requires_grad_(True).train()


def token_fields(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Returns the fields of a configuration that its tokenizer decides: vocabulary size and ids of special tokens.

    Raises:
        CheckpointError: the tokenizer lacks one of Arlow's special tokens.
    """
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    vocab = tokenizer.get_vocab()
    lacking = [name.removesuffix("_id") for name, index in roles.items() if index is None]
    lacking += [] if IMAGE_TOKEN in vocab else [IMAGE_TOKEN]
    if lacking:
        raise CheckpointError(
            f"{folder}: the tokenizer has no {', '.join(lacking)}; `arlow import` adds them to a pretrained model's"
        )
    return {"vocab_size": max(vocab.values()) + 1, **roles, "image_token_id": vocab[IMAGE_TOKEN]}


def build_image_text(recipe: ImageTextRecipe) -> Stage:
    """Builds the stage of an image-text recipe, from a text checkpoint or a vision-language model.

    With `cache_features`, the frozen encoder's features are computed here, on the device of the run.
    """
    tokenizer, config = image_text_beginning(recipe)
    refuse_beyond_positions("max_length", recipe.max_length, config)
    sources = checked_sources(recipe, tokenizer)
    model, processor = image_text_products(recipe, tokenizer)
    refuse_too_large(model, recipe)
    encoder = model.model.vision
    transform = ImageTransform.from_dict(model.config.vision_config.transform)
    images: DecodedImages | CachedImages = DecodedImages(transform)
    if recipe.cache_features:
        encoder.requires_grad_(False).eval().to(device_type_of(recipe.run.engine))
        images = cache_sample_images(
            [source.samples for source in sources if isinstance(source.samples, IndexedSamples)],
            encoder,
            transform,
            recipe.cache_features,
            dtype=getattr(torch, recipe.cache_dtype),
            on_progress=ProgressLine("encoder features", "images"),
        )
        encoder.to("cpu")  # where models are built
        check_refused_images(sources, images.refused, recipe.max_bad_fraction)
    data = ImageTextData(recipe, sources, tokenizer, images, partial(layout_of, model.config, encoder))
    return Stage(ImageTextModule(model, recipe), data, (model, processor))


def build_vision_language_model(recipe: ImageTextRecipe) -> ArlowVLForConditionalGeneration:
    """Returns the text checkpoint with the recipe's encoder and projector; the config holds all of the transform."""
    assert recipe.text_checkpoint is not None  # see the recipe
    config, weights = vision_config_of(recipe), Path(recipe.vision["weights"])
    config.transform = data_config_beside(weights, config.timm_name) | (config.transform or {})
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(recipe.text_checkpoint, config, **recipe.model)
    load_encoder_weights(model.model.vision, weights)
    return model


def data_config_beside(weights: Path, timm_name: str) -> dict[str, Any]:
    """Returns the entries of timm's data config in the JSON file beside the weights, empty if there is no such file.

    Weights that were trained with another image transform than timm's have one.
    """
    beside = weights.with_suffix(".json")
    if not beside.is_file():
        return {}
    facts = json.loads(beside.read_text())
    if facts.get("timm_name", timm_name) != timm_name:
        raise ValueError(f"vision.weights are those of {facts['timm_name']}, but vision.timm_name is {timm_name}")
    config = facts.get("data_config", {})
    return {key: config[key] for key in ImageTransform.DATA_CONFIG if key in config and key != "input_size"}
