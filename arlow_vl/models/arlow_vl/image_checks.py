# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Checks of image inputs: each mistake of a caller is refused in a sentence that says what to do."""

from collections.abc import Collection

import torch
from torch import Tensor

from arlow_vl.models.arlow.errors import CheckpointError
from vision.encoder import VisionEncoder

PLACES = "place_embedding.scale"


def refuse_two_kinds_of_image(
    pixel_values: Tensor | None, image_features: Tensor | None, encoder_hidden_states: Tensor | None
) -> None:
    """Raises ValueError where images came in two forms at once."""
    if pixel_values is not None and image_features is not None:
        raise ValueError("give pixel_values or image_features (what the encoder made of them), not both")
    if encoder_hidden_states is not None and (pixel_values is not None or image_features is not None):
        raise ValueError("give images or the encoder_hidden_states that were made of them, not both")


def refuse_wrong_pixels(pixel_values: Tensor, image_grids: Tensor | None) -> None:
    """Raises ValueError unless pixels came in one of the forms of `ArlowVLModel.encode_images`."""
    if torch.compiler.is_compiling():
        return
    _refuse_wrong_axes(
        "pixel_values",
        pixel_values,
        axes=4,
        form="(images, 3, height, width)",
        counts_name="image_grids",
        counts=image_grids,
    )
    if pixel_values.ndim == 4 and pixel_values.shape[1] != 3:
        raise ValueError(
            f"pixel_values must have 3 channels on the second axis, got {tuple(pixel_values.shape)}; "
            "ArlowImageProcessor makes them of images of any kind"
        )
    if image_grids is not None:
        _refuse_wrong_counts("image_grids", image_grids, image_grids.prod(-1), "patches", pixel_values)


def refuse_wrong_features(
    image_features: Tensor,
    image_grids: Tensor | None,
    encoder_lengths: Tensor | None,
    *,
    encoder: VisionEncoder,
    patch_size: int | None,
) -> None:
    """Raises ValueError unless features came in one of the forms of `ArlowVLModel.encode_images`.

    `patch_size` is that of images in native resolution.
    """
    if torch.compiler.is_compiling():
        return
    _refuse_wrong_axes(
        "image_features",
        image_features,
        axes=3,
        form="(tiles, patches, dim)",
        counts_name="encoder_lengths",
        counts=encoder_lengths,
    )
    if image_features.shape[-1] != encoder.embed_dim:
        raise ValueError(
            f"image_features must be {encoder.embed_dim} wide, as this model's encoder gives them, got "
            f"{image_features.shape[-1]}; they are of another encoder or of other blocks"
        )
    if encoder_lengths is not None:
        _refuse_wrong_counts("encoder_lengths", encoder_lengths, encoder_lengths, "tokens", image_features)
        grids = None if image_grids is None else image_grids.tolist()
        lengths = encoder_lengths.tolist()
        if grids is None or not _are_of(grids, lengths, encoder, patch_size):
            raise ValueError(
                "image_features in native resolution need the image_grids that pixel_values had, of which the encoder "
                f"makes as many tokens as say encoder_lengths {lengths}, got {grids}"
            )
    elif image_grids is not None:
        raise ValueError("image_grids goes with images in native resolution, and these image_features have one size")


def refuse_wrong_tiles(tiles_per_image: Tensor, features: Tensor) -> None:
    """Raises ValueError unless every one of the tiles is of an image."""
    _refuse_wrong_counts("tiles_per_image", tiles_per_image, tiles_per_image, "tiles", features)


def _are_of(grids: list[list[int]], lengths: list[int], encoder: VisionEncoder, patch_size: int | None) -> bool:
    """True if the tokens can be those of the grids.

    For a net that gives a map only the images are counted: it would have to be built anew to tell its tokens of a size.
    """
    if encoder.gives_map or encoder.patch_size is None or patch_size is None:
        return len(grids) == len(lengths)
    return lengths == [encoder.num_tokens(rows * patch_size, columns * patch_size) for rows, columns in grids]


def _refuse_wrong_axes(
    name: str, values: Tensor, *, axes: int, form: str, counts_name: str, counts: Tensor | None
) -> None:
    """Refuses values that have neither `axes` axes, which `form` names, nor two, and these without their counts."""
    if values.ndim not in (2, axes):
        raise ValueError(f"{name} must be {form}, one after another whatever their rows, got {tuple(values.shape)}")
    if (counts is not None) != (values.ndim == 2):
        raise ValueError(f"{counts_name} goes with {name} of two axes, and only with them, got {tuple(values.shape)}")


def _refuse_wrong_counts(name: str, given: Tensor, counts: Tensor, of: str, values: Tensor) -> None:
    if int(counts.sum()) != len(values) or bool((counts < 1).any()):
        raise ValueError(f"{name} {given.tolist()} must be positive and add up to the {len(values)} {of}")


def refuse_placeless_projector(source: object, missing_keys: Collection[str]) -> None:
    """Raises CheckpointError for weights that were saved before image tokens had places."""
    lacks = {name: any(key.endswith(f"projector.{name}") for key in missing_keys) for name in (PLACES, "norm.weight")}
    if lacks[PLACES] and not lacks["norm.weight"]:
        raise CheckpointError(
            f"{source} was trained before image tokens had places ({PLACES} is missing); train the vision stage again"
        )
