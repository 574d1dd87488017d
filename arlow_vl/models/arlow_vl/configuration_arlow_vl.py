# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Architecture of the vision-language model: an image encoder, a projector and Arlow."""

import copy
import math
import shutil
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from arlow_vl.models.arlow.configuration_arlow import (
    ArlowConfig,
    naming_fields,
    refuse_unknown_keys,
    without_unknown_keys,
)
from arlow_vl.models.arlow.spelling import did_you_mean
from vision.transform import MAX_CANVAS_PIXELS, ImageTransform

# Lies in a model folder in place of code: by it the Auto classes of a process without the package say what is missing.
NEEDS_PACKAGE = Path(__file__).parent / "needs_arlow_vl.py"


class NeedsPackage:
    """A mixin for the classes whose code cannot lie in a model folder: it is this package, `vision` and timm."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Raises ValueError, where transformers would write a folder that loads nowhere."""
        raise ValueError(
            f"{cls.__name__} cannot be saved with its code, which is the package arlow-vl and timm; "
            "install arlow-vl where the folder is to be loaded"
        )

    @staticmethod
    def map_to_package(**class_names: str) -> dict[str, str]:
        """A folder's `auto_map`, by which a transformers without this package finds `NEEDS_PACKAGE`."""
        return {auto_class: f"{NEEDS_PACKAGE.stem}.{name}" for auto_class, name in class_names.items()}


@strict
class ArlowVisionConfig(NeedsPackage, PreTrainedConfig):
    """A timm backbone and the form of its images."""

    model_type = "arlow_vision"
    base_config_key = "vision_config"

    timm_name: str = "vit_small_patch14_dinov2"
    """Any timm model that gives patch tokens or a feature map."""
    blocks: list[int] | None = None
    """Blocks whose tokens are read, joined on the last axis; of a feature-map net its stages, finer ones folded to the
    places of the coarsest. None: the output of the whole net."""
    image_size: int | list[int] = 224
    """Height and width of the encoder's input, pixels; one number for both."""
    prefix_tokens: bool = False
    """True: the decoder reads the encoder's class and register tokens too."""
    transform: dict | None = None
    """Image preprocessing, as `ImageTransform.to_dict` writes it; checkpoint and processor must agree on it.

    `from_text_checkpoint` adds what is missing out of the encoder's own, so that {"max_tiles": 6} is enough for tiles.
    """

    def __post_init__(self, **kwargs):
        refuse_unknown_keys(self, kwargs)
        for key, value in (self.transform or {}).items():
            if key not in ImageTransform.FIELDS:
                raise ValueError(f"transform has no {key!r}; {did_you_mean(key, ImageTransform.FIELDS)}")
            if key in ("max_tiles", "max_patches", "patch_size") and not isinstance(value, int):
                if value is None and key != "max_tiles":
                    continue
                raise ValueError(f"transform: {key} must be a whole number, got {value!r}")
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        return without_unknown_keys(self, super().to_dict())

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Builds the configuration as transformers does. Raises CheckpointError naming an unusable field."""
        with naming_fields(cls):
            return super().from_dict(config_dict, **kwargs)

    def validate_images(self) -> None:
        """Part of `@strict`: refuses images that no encoder takes, or that would not fit into memory."""
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size] * 2
        if len(sides) != 2 or min(sides) < 1 or math.prod(sides) > MAX_CANVAS_PIXELS:
            raise ValueError(
                f"image_size must be a height and a width of together at most {MAX_CANVAS_PIXELS:,} pixels, or one "
                f"number for both, got {self.image_size}"
            )
        if not self.timm_name:
            raise ValueError("timm_name is empty; name the timm model of the encoder")

    def validate_transform(self) -> None:
        """Part of `@strict`: a whole transform is one that `ImageTransform` takes, for images of `image_size`."""
        transform = self.transform or {}
        if not transform.keys() >= set(ImageTransform.DATA_CONFIG):
            return  # `from_text_checkpoint` adds what is missing
        try:
            size = ImageTransform.from_dict(transform).input_size[1:]
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise ValueError(f"transform cannot be used: {error}") from error
        if size != self.input_size:
            raise ValueError(f"transform makes images of {size}, image_size is {self.input_size}; they must agree")

    @property
    def max_tiles(self) -> int:
        """Tiles that an image may have beside its thumbnail; 1: the thumbnail alone."""
        return (self.transform or {}).get("max_tiles", 1)

    @property
    def patch_size(self) -> int | None:
        """Pixels of the side of a patch of images in their native resolution; None: all images have one size."""
        return (self.transform or {}).get("patch_size")

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the encoder's input, pixels."""
        height, width = self.image_size if isinstance(self.image_size, list) else [self.image_size] * 2
        return height, width


@strict
class ArlowVLConfig(NeedsPackage, PreTrainedConfig):
    """An image encoder, a projector and the text decoder that reads them."""

    model_type = "arlow_vl"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [*ArlowConfig.keys_to_ignore_at_inference, "image_outputs"]
    sub_configs_defaults = {"text_config": ArlowConfig, "vision_config": ArlowVisionConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projector: Literal["linear", "mlp", "perceiver"] = "mlp"
    projector_latents: int = 64
    """Tokens that a perceiver makes of every image, however many tiles or patches it has."""
    gate_opening: float | int | None = None
    """Opening of the cross-attention gates that `from_text_checkpoint` sets: tanh of each, from 0 to below 1.

    None: gates stay as they are, which is closed. Text without images is the same with any, and open blocks learn
    sooner.
    """

    def __post_init__(self, tie_word_embeddings: bool = True, **kwargs):
        refuse_unknown_keys(self, kwargs)
        for name, expected in (("text_config", ArlowConfig), ("vision_config", ArlowVisionConfig)):
            part = getattr(self, name) or {}
            got = part.get("model_type", expected.model_type) if isinstance(part, dict) else part.model_type
            if got != expected.model_type:
                raise ValueError(f"{name} must be of model_type {expected.model_type!r}, got {got!r}")
        super().__post_init__(**kwargs)
        if not self.text_config.use_cross_attention:
            raise ValueError(
                "text_config has use_cross_attention False, so images could not reach the decoder; set it to True"
            )
        if self.projector_latents < 1:
            raise ValueError(f"projector_latents must be at least 1, got {self.projector_latents}")
        if self.gate_opening is not None and not 0 <= self.gate_opening < 1:
            raise ValueError(f"gate_opening must be from 0 to below 1 (tanh of each gate), got {self.gate_opening}")
        self.auto_map = self.map_to_package(  # trl looks in it for the Auto class to open a model with
            AutoConfig="ArlowVLConfig",
            AutoModel="ArlowVLModel",
            AutoModelForImageTextToText="ArlowVLForConditionalGeneration",
        )
        if self.tie_word_embeddings and tie_word_embeddings is not True:
            # In a file the two differ where the head was trained apart. A given configuration may be another model's.
            self.text_config = copy.deepcopy(self.text_config)
            self.tie_word_embeddings = tie_word_embeddings

    def to_dict(self) -> dict[str, Any]:
        return without_unknown_keys(self, super().to_dict()) | {"tie_word_embeddings": self.tie_word_embeddings}

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """Saves as transformers does, with the file that says what the folder needs."""
        super().save_pretrained(save_directory, **kwargs)
        shutil.copyfile(NEEDS_PACKAGE, Path(save_directory) / NEEDS_PACKAGE.name)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Builds the configuration as transformers does. Raises CheckpointError naming an unusable field."""
        with naming_fields(cls):
            return super().from_dict(config_dict, **kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the text decoder, which drafts of the first layers (`assistant_early_exit`) set to fewer."""
        return self.text_config.num_hidden_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        self.text_config.num_hidden_layers = value

    @property
    def tie_word_embeddings(self) -> bool:
        """True: the decoder's head is its embedding. Libraries read and set it here, the text model reads its own."""
        return self.text_config.tie_word_embeddings

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        self.text_config.tie_word_embeddings = value

    @property
    def image_token_id(self) -> int:
        return self.text_config.image_token_id


__all__ = ["ArlowVLConfig", "ArlowVisionConfig"]
