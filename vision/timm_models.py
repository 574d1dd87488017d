"""timm models by name, and facts about them that decide how an encoder runs them."""

import difflib
from typing import Any

from torch import nn


def create_backbone(
    timm_name: str, blocks: tuple[int, ...], image_size: tuple[int, int] | None, **kwargs: Any
) -> nn.Module:
    """The timm model without its head and the blocks after the last of `blocks`.

    Raises:
        ValueError: as `create_timm_model`, or the model has no such blocks.
    """
    backbone: Any = create_timm_model(timm_name, image_size, num_classes=0, **kwargs)
    if blocks:
        depth = len(backbone.feature_info) if hasattr(backbone, "forward_intermediates") else 0
        if len(set(blocks)) != len(blocks) or not all(0 <= block < depth for block in blocks):
            raise ValueError(f"{timm_name} has {depth} blocks, named once each from 0 on, got {list(blocks)}")
        backbone.prune_intermediate_layers(list(blocks), prune_head=True)
    elif getattr(backbone, "attn_pool", None) is not None:
        backbone.reset_classifier(0, "")
    return backbone


def create_timm_model(timm_name: str, image_size: tuple[int, int] | None, **kwargs: Any) -> nn.Module:
    """The timm model for images of (height, width) pixels, of random weights; None: the size it was trained with.

    `kwargs` go to `timm.create_model`.

    Raises:
        ValueError: timm has no such model, or the size is not positive or no multiple of the model's patches.
    """
    import timm

    if not timm.is_model(timm_name):
        close = difflib.get_close_matches(timm_name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise ValueError(f"timm has no model {timm_name!r}; {hint}")
    try:
        config = timm.get_pretrained_cfg(timm_name)
    except RuntimeError as error:  # the part after a dot
        raise ValueError(f"timm has no weights {timm_name!r}; name the model without the tag") from error
    if image_size is None:
        return timm.create_model(timm_name, **kwargs)
    if min(image_size) < 1:
        raise ValueError(f"image_size must be positive, got {min(image_size)}")
    size: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    model = timm.create_model(timm_name, **size, **kwargs)
    patch_size = _sides(getattr(getattr(model, "patch_embed", None), "patch_size", 1))
    if size and any(side % patch for side, patch in zip(image_size, patch_size, strict=True)):
        got = " x ".join(map(str, image_size))
        raise ValueError(f"image_size must be a multiple of {max(patch_size)} for {timm_name}, got {got}")
    return model


def breaks_channels_last(module: nn.Module) -> bool:
    """True for a strided 1 x 1 convolution of few channels, as in FastViT's stem.

    With channels-last images its weight gradient on a CPU writes out of bounds and sooner or later crashes the process
    (oneDNN 3.13, torch 2.15).
    """
    if not isinstance(module, nn.Conv2d):
        return False
    channels = module.in_channels // module.groups
    return module.kernel_size == (1, 1) and module.stride != (1, 1) and channels < 16


def patch_size_of(backbone: nn.Module) -> int | None:
    """Side of a patch in pixels; None where the model has no patch embedding, or patches that are not square."""
    embedding = getattr(backbone, "patch_embed", None) or getattr(backbone, "embeds", None)
    patch_size = getattr(embedding, "patch_size", None)
    if not patch_size:
        return None
    height, width = _sides(patch_size)
    return height if height == width else None


def _sides(patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a patch; XCiT gives one number for both."""
    return (patch_size, patch_size) if isinstance(patch_size, int) else patch_size


def data_config_of(backbone: nn.Module, image_size: tuple[int, int] | None) -> dict[str, Any]:
    """timm's data config of the model, with `input_size` for `image_size` (height, width)."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(backbone)
    return config if image_size is None else config | {"input_size": (3, *image_size)}
