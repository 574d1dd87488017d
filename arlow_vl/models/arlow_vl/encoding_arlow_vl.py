# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Encoding of images into states for the decoder: images of one size, in tiles, or in native resolution."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from arlow_vl.models.arlow.attention import cast_to
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVLConfig
from arlow_vl.models.arlow_vl.image_checks import refuse_wrong_features, refuse_wrong_pixels, refuse_wrong_tiles
from vision.encoder import VisionEncoder
from vision.places import grid_of, grid_places, native_places, tile_places
from vision.projector import LinearProjector, MLPProjector, PerceiverResampler
from vision.transform import MAX_GRID


class EncodedImages(NamedTuple):
    """Encoded images, before and after the projector."""

    features: Tensor
    """Output of the encoder, (images, P, F), or flat (K, F) where images differ in length."""
    states: Tensor
    """The projected features, in the decoder's width."""
    lengths: Tensor | None
    """(images,) int64: the number of flat states of each image; None: states are not flat."""

    def decoder_inputs(self) -> dict[str, Tensor]:
        inputs = {"encoder_hidden_states": self.states, "encoder_lengths": self.lengths}
        return {key: value for key, value in inputs.items() if value is not None}

    def image_outputs(self) -> BaseModelOutputWithPooling:
        of_images = self.states if self.lengths is None else self.states.split(self.lengths.tolist())
        return BaseModelOutputWithPooling(last_hidden_state=self.features, pooler_output=of_images)


class ImageEncodingMixin:
    """A mixin with `encode_images`, for a model that has an encoder and a projector."""

    config: ArlowVLConfig
    vision: VisionEncoder
    projector: LinearProjector | MLPProjector | PerceiverResampler

    def encode_images(
        self,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        tiles_per_image: Int[Tensor, " images"] | None = None,
        tile_ids: Int[Tensor, " tiles"] | None = None,
        image_grids: Int[Tensor, "images 2"] | None = None,
        encoder_lengths: Int[Tensor, " images"] | None = None,
    ) -> EncodedImages:
        """Runs images through the encoder and the projector.

        Args:
            pixel_values: (N, 3, height, width), images or their tiles, image after image; or with `image_grids`
                (K, values), the patches of images in their native resolution.
            image_features: (N, P, F), the encoder's output for images or tiles, instead of pixels; or with
                `image_grids` and `encoder_lengths` (K, F), its tokens of images in their native resolution.
            tiles_per_image: Number of tiles of each image; None: each tile is an image.
            tile_ids: The place of each tile (`vision.forms.tiling`); None: all are thumbnails.
            image_grids: Rows and columns of patches of each image, in native resolution.
            encoder_lengths: Number of tokens of `image_features` of each image, in native resolution.

        The counts (`tiles_per_image`, `image_grids`, `encoder_lengths`) decide shapes. They may stay on the CPU, so
        that reading them waits for no device.

        Raises:
            ValueError: inputs that do not go together (see `image_checks`).
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("give pixel_values or image_features (what the encoder made of them), not both")
        if pixel_values is not None:
            refuse_wrong_pixels(pixel_values, image_grids)
        else:
            patch_size = self.config.vision_config.patch_size or self.vision.patch_size
            refuse_wrong_features(
                image_features, image_grids, encoder_lengths, encoder=self.vision, patch_size=patch_size
            )
        if pixel_values is None:
            features, lengths = image_features.to(self.projector.dtype), encoder_lengths
        elif image_grids is not None:
            features, lengths = self.vision.forward_native(pixel_values.to(self.vision.dtype), image_grids)
        else:
            features, lengths = self.vision(pixel_values.to(self.vision.dtype)), None
        features = cast_to(features, self.projector.dtype)
        if lengths is not None:
            prefix = self.vision.num_kept_prefix_tokens
            places = native_places(image_grids, lengths, prefix_tokens=prefix, device=features.device)
            return self._project(features, places, lengths)
        height, width = self.vision.image_size if pixel_values is None else pixel_values.shape[2:]
        places = self._whole_places(features, height, width)
        features = self._mark_tiles(features, tile_ids)
        if tiles_per_image is None:
            return self._project(features, places, None)
        flat, lengths = _join_tiles(features, tiles_per_image)
        if tile_ids is not None:
            places = tile_places(places, tile_ids, tiles_per_image)
        return self._project(flat, places.expand(len(features), -1, -1).flatten(0, 1), lengths)

    def _whole_places(self, features: Tensor, height: int, width: int) -> Tensor:
        """(P, 2) places of the tokens of an image or a tile of this size, pixels."""
        prefix = self.vision.num_kept_prefix_tokens
        grid = grid_of(features.shape[1] - prefix, height, width)
        return grid_places(*grid, prefix_tokens=prefix, device=features.device)

    def _mark_tiles(self, features: Tensor, tile_ids: Tensor | None) -> Tensor:
        if self.projector.tile_embedding is not None:
            if tile_ids is None:
                tile_ids = torch.zeros(len(features), dtype=torch.long, device=features.device)
            return self.projector.mark_tiles(features, tile_ids)
        if tile_ids is not None:
            raise ValueError(
                "tile_ids came, but this model has no places for tiles; build it with max_tiles in the transform of "
                "vision_config, or take the processor that was saved with the model"
            )
        return features

    def _project(self, features: Tensor, places: Tensor, lengths: Tensor | None) -> EncodedImages:
        """Projects features, with an axis of images that share their places, or flat with all places and `lengths`."""
        if not isinstance(self.projector, PerceiverResampler):
            return EncodedImages(features, self.projector(features, places), lengths)
        flat = features
        if lengths is None:
            flat, lengths = _join_tiles(features, torch.ones(len(features), dtype=torch.long))
            places = places.expand(len(features), -1, -1).flatten(0, 1)
        return EncodedImages(features, self.projector(flat, places, lengths), None)


def build_projector(config: ArlowVLConfig, in_dim: int) -> LinearProjector | MLPProjector | PerceiverResampler:
    out_dim, heads = config.text_config.hidden_size, config.text_config.num_attention_heads
    num_tile_ids = 1 + MAX_GRID**2 if config.vision_config.max_tiles > 1 else 0
    if config.projector == "perceiver":
        latents = config.projector_latents
        return PerceiverResampler(in_dim, out_dim, num_latents=latents, num_heads=heads, num_tile_ids=num_tile_ids)
    kind = {"linear": LinearProjector, "mlp": MLPProjector}[config.projector]
    return kind(in_dim, out_dim, num_tile_ids=num_tile_ids)


def _join_tiles(features: Tensor, tiles_per_image: Tensor) -> tuple[Tensor, Tensor]:
    """(tiles, P, F) -> (K, F), the tiles of each image as one, and the (N,) lengths of the images."""
    refuse_wrong_tiles(tiles_per_image, features)
    return features.flatten(0, 1), tiles_per_image * features.shape[1]
