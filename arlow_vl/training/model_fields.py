"""Model fields of a recipe, checked by the configuration classes that define them."""

import copy
import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.spelling import did_you_mean
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.training.recipe import ImageTextRecipe, Recipe, TextRecipe, first_difference

OF_THE_CHECKPOINT = ("text_config", "vision_config")  # set by the text model and by `vision`


def check_model_fields(recipe: Recipe) -> None:
    """Raises ValueError if no model can be built from the recipe's `model` or `vision`."""
    if recipe.checkpoint is not None:
        return
    if isinstance(recipe, TextRecipe):
        config_of("model", ArlowConfig, recipe.model)
        return
    vision_config_of(recipe)
    known = [name for name in own_fields(ArlowVLConfig) if name not in OF_THE_CHECKPOINT]
    _refuse_unknown("model", recipe.model, known)
    config_of("model", ArlowVLConfig, recipe.model)


def vision_config_of(recipe: ImageTextRecipe) -> ArlowVisionConfig:
    """Returns the recipe's configuration of the encoder. Raises ValueError for a wrong field of `vision`."""
    _refuse_unknown("vision", recipe.vision, [*own_fields(ArlowVisionConfig), "weights"])
    fields = {name: value for name, value in recipe.vision.items() if name != "weights"}
    return config_of("vision", ArlowVisionConfig, fields)


def config_of(key: str, config_class: type[PreTrainedConfig], fields: Mapping[str, Any]) -> Any:
    """Returns a configuration with these fields. Raises ValueError naming the recipe's `key`, also for wrong types."""
    try:
        return config_class(**{str(name): copy.deepcopy(value) for name, value in fields.items()})  # it changes them
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{key}: {' '.join(str(error).split())}") from error


def own_fields(config_class: type[PreTrainedConfig]) -> list[str]:
    """Returns the fields that a configuration class itself defines, without those that transformers adds to all."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    return [name for name in inspect.get_annotations(config_class) if name in fields]


def plain_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Returns the own fields of a configuration as JSON values, those of sub-configs as `text_config.hidden_size`."""
    fields = json.loads(config.to_json_string(use_diff=False))
    plain = {name: fields[name] for name in own_fields(type(config)) if name not in config.sub_configs}
    for part in config.sub_configs:
        plain |= {f"{part}.{name}": value for name, value in plain_fields(getattr(config, part)).items()}
    return plain


def refuse_other_settings(saved: Mapping[str, Any], config: PreTrainedConfig) -> None:
    """Raises CheckpointError naming the first field that differs from `saved`, the `plain_fields` of a checkpoint.

    Fields that are missing on one side are not compared, as another version may not know them.
    """
    now = plain_fields(config)
    for name in (name for name in now if name in saved):
        if difference := first_difference(saved[name], now[name], name):
            raise CheckpointError(
                f"the checkpoint is of a model with other settings: {difference}; put back the config.json or the "
                ".json beside the weights that the run began with, or use another run_dir"
            )


def _refuse_unknown(key: str, fields: Mapping[str, Any], known: list[str]) -> None:
    for name in fields:
        if name not in known:
            raise ValueError(f"{key}: unknown key {name}; {did_you_mean(name, known)}")
