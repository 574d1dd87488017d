"""The image encoder: any timm backbone, read for its patch tokens."""

import copy
import functools
import math
from collections import defaultdict
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad, pixel_unshuffle

from vision.forms.native_resolution import unpatchify
from vision.timm_models import breaks_channels_last, create_backbone, data_config_of, patch_size_of
from vision.transform import ImageTransform


class VisionEncoder(nn.Module):
    """A headless timm backbone; random until `load_encoder_weights` has read its weights.

    A transformer gives its patch tokens, a convolutional net its last feature map, row by row. Transformers for which
    timm interpolates the positions (ViT, EVA, NaFlexViT) take any size that is a whole number of patches. A frozen
    encoder (no parameter requires a gradient) stays in eval mode and records no graph. Batch norms always stay in eval
    mode: their statistics stay those of the pretraining. Batches here are small, and `Trainer.train()`
    and Lightning put every module of a model into train mode, which would overwrite them within a few steps.

    Args:
        blocks: Indices, from 0, of the blocks to read (of a feature-map net: of its stages), joined on the last axis
            in the order of the net. The final norm is applied to each, as DINOv2 does; of several stages each has its
            tokens brought to unit variance. A finer map is folded to the places of the coarsest: what stands in one of
            those lies side by side in its token. Empty: the output of the whole backbone.
        image_size: Height and width of the images, pixels; one number for both. None: what the timm model was trained
            with.
        prefix_tokens: True: class and register tokens stay, in front of the patches.

    Raises:
        ValueError: timm has no such model, or the model no such blocks or image size.
    """

    embed_dim: int
    """Width of a token: the sum over `blocks`."""
    num_patches: int
    """Tokens of an image of `image_size`."""
    data_config: dict[str, Any]
    """timm's data config of the model, with `input_size` for `image_size`."""

    patch_size: int | None
    """Pixels of the side of a patch; None: the net has none, they are not square, or they are no patches of pixels."""

    def __init__(
        self,
        timm_name: str,
        *,
        blocks: tuple[int, ...] = (),
        image_size: int | tuple[int, int] | None = None,
        prefix_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.timm_name, self.blocks, self.prefix_tokens = timm_name, tuple(blocks), prefix_tokens
        size = (image_size, image_size) if isinstance(image_size, int) else image_size and tuple(image_size)
        for name, fact in facts_of(timm_name, self.blocks, size, prefix_tokens).items():
            setattr(self, name, copy.copy(fact))
        any_size = {"dynamic_img_size": True} if self.takes_any_size else {}
        self._create_backbone = partial(create_backbone, timm_name, self.blocks, size, **any_size)
        self.backbone = self._create_backbone()
        self._checkpoints = False
        self._tokens_of_size: dict[tuple[int, int], int] = {}

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.data_config["input_size"][1:]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first weight that is not quantised, which pixels are to be in."""
        return next(x.dtype for x in self.parameters() if x.is_floating_point() and x.itemsize > 1)

    @property
    def is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.parameters())

    @property
    def gradient_checkpointing(self) -> bool:
        """True: blocks are computed again for their gradients. transformers sets it on each module that has it."""
        return self._checkpoints

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        if not hasattr(self.backbone, "set_grad_checkpointing"):
            if enable:
                raise ValueError(
                    f"timm has no gradient checkpointing for {self.timm_name}; train it without, or freeze it"
                )
            return
        self.backbone.set_grad_checkpointing(enable)
        self._checkpoints = enable

    def image_transform(self, **settings: Any) -> ImageTransform:
        """The preprocessing by timm's data config, of which `settings` override fields of ImageTransform.

        Images in their native resolution (`max_patches`) have the encoder's patches unless `patch_size` is given.

        Raises:
            ValueError: native resolution for an encoder that takes images of one size, that has no square patches and
                got no `patch_size`, or that takes no image of a single patch.
        """
        native, advice = settings.get("max_patches"), "leave out max_patches or name a ViT"
        if native and settings.get("patch_size") is None:
            settings["patch_size"] = self.patch_size
        if native and (self.has_fixed_size or settings["patch_size"] is None):
            reason = "takes images of one size" if self.has_fixed_size else "has no square patches"
            raise ValueError(f"{self.timm_name} {reason}, so images cannot keep their resolution; {advice}")
        data_config = {key: self.data_config[key] for key in ImageTransform.DATA_CONFIG}
        transform = ImageTransform.from_dict(data_config | settings)
        if transform.patch_size and not self._takes_one_patch(transform.patch_size):
            raise ValueError(
                f"{self.timm_name} takes no image of a single patch of {transform.patch_size} pixels, so small images "
                f"and strips cannot keep their resolution; set a larger patch_size in transform, {advice}"
            )
        return transform

    def forward(self, pixel_values: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images patches dim"]:
        self._refuse_wrong_size(*pixel_values.shape[2:])
        if not self.is_frozen:
            return self._tokens(pixel_values)
        if self.training:  # frozen after train() was called: batch statistics must not move
            self.eval()
        with torch.no_grad():
            return self._tokens(pixel_values)

    def forward_native(
        self, patches: Float[Tensor, "patches values"], grids: Int[Tensor, "images 2"]
    ) -> tuple[Float[Tensor, "tokens dim"], Int[Tensor, " images"]]:
        """Tokens of images of any sizes, packed by `patchify`, image after image, and the number of tokens of each.

        Images of one size go through the net together, and nothing is padded.
        """
        images = unpatchify(patches, grids)
        of_size = defaultdict(list)
        for number, image in enumerate(images):
            of_size[image.shape].append(number)
        tokens: dict[int, Tensor] = {}
        for numbers in of_size.values():
            tokens |= zip(numbers, self(torch.stack([images[number] for number in numbers])), strict=True)
        flat = [tokens[number] for number in range(len(images))]
        return torch.cat(flat), torch.tensor([len(image) for image in flat], device=grids.device)

    def num_tokens(self, height: int, width: int) -> int:
        """Number of tokens that `forward` gives for an image of this size in pixels, found without an image."""
        if (height, width) == tuple(self.image_size):
            return self.num_patches
        if self.patch_size and not self.gives_map:
            return (height // self.patch_size) * (width // self.patch_size) + self.num_kept_prefix_tokens
        if (height, width) not in self._tokens_of_size:
            twin = copy.copy(self)  # with a backbone that takes no memory
            with torch.device("meta"):
                twin._modules = {"backbone": self._create_backbone().eval()}
                self._tokens_of_size[height, width] = twin._tokens(torch.empty(1, 3, height, width)).shape[1]
        return self._tokens_of_size[height, width]

    @functools.cached_property
    def unread_parameters(self) -> frozenset[str]:
        """Names of the parameters that no token depends on, such as those of a norm in front of timm's head.

        They never have a gradient, for which data-parallel training would wait.
        """
        twin = copy.copy(self)
        with torch.device("meta"), torch.enable_grad():
            twin._modules = {"backbone": self._create_backbone().eval()}
            tokens = twin._tokens(torch.empty(1, 3, *self.image_size))
            parameters = dict(twin.named_parameters())
            gradients = torch.autograd.grad(tokens.sum(), list(parameters.values()), allow_unused=True)
        return frozenset(name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None)

    def train(self, mode: bool = True) -> "VisionEncoder":
        super().train(mode and not self.is_frozen)
        for module in self.modules():
            if hasattr(module, "running_var"):  # every kind of batch norm
                module.training = False
        return self

    @torch.no_grad()
    def initialize(self, names: Collection[str]) -> None:
        """Gives these parameters and persistent buffers of the backbone timm's own initial values."""
        own, fresh = self.backbone.state_dict(), self._create_backbone().state_dict() if names else {}
        for name in fresh.keys() & set(names):
            own[name].copy_(fresh[name])

    def init_non_persistent_buffers(self) -> None:
        """Computes the tables that no checkpoint holds (rotary angles, relative positions).

        To be called when weights have been put into a model that was built on the meta device.
        """
        for name, module in self.backbone.named_modules():
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
                continue
            held = [key for key in module._non_persistent_buffers_set if getattr(module, key) is not None]
            assert not held, f"timm has no way to compute {name}.{held[0]} of {self.timm_name}"

    def _takes_one_patch(self, patch: int) -> bool:
        """True if the smallest image in native resolution goes through. Raises ValueError for broken patches."""
        self._refuse_wrong_size(patch, patch)
        try:
            return self.num_tokens(patch, patch) > 0
        except (RuntimeError, AssertionError):
            return False

    def _check_patches(self, patch: int) -> None:
        """Refuses an image size of broken patches; drops a `patch_size` that counts a stem's outputs, not pixels."""
        grid = [side // patch for side in self.image_size]
        if any(side % patch for side in self.image_size):
            own, whole = " x ".join(map(str, self.image_size)), [patch * count for count in grid]
            raise ValueError(
                f"{self.timm_name} was made for images of {own} pixels, which are no whole patches of {patch}; "
                f"set image_size to {whole[0] if whole[0] == whole[1] else whole}"
            )
        if self.num_patches - self.num_kept_prefix_tokens != math.prod(grid):
            self.patch_size = None

    def _refuse_wrong_size(self, height: int, width: int) -> None:
        if self.has_fixed_size and (height, width) != tuple(self.image_size):
            got, want = (" x ".join(map(str, size)) for size in ((height, width), self.image_size))
            raise ValueError(f"{self.timm_name} was built for images of {want} pixels, got {got}; set image_size")
        if not self.gives_map and self.patch_size and (height % self.patch_size or width % self.patch_size):
            raise ValueError(
                f"{self.timm_name} takes images whose sides are multiples of {self.patch_size} pixels, "
                f"got {height} x {width}"
            )

    def _tokens(self, pixel_values: Tensor) -> Tensor:
        if self.gives_map and self.takes_channels_last:  # convolutions on a CPU are up to 1.8 times as fast
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        if not self.blocks:
            return self._patches(self._run("forward_features", pixel_values))
        outputs = self._run(
            "forward_intermediates",
            pixel_values,
            indices=list(self.blocks),
            norm=True,
            output_fmt="NCHW" if self.gives_map else "NLC",
            intermediates_only=True,
            **({"return_prefix_tokens": True} if self.prefix_tokens and self.num_prefix_tokens else {}),
        )
        if self.gives_map:
            return self._joined(outputs) if len(outputs) > 1 else outputs[0].flatten(2).mT
        if isinstance(outputs[0], tuple):
            outputs = [torch.cat([prefix, patches], dim=1) for patches, prefix in outputs]
        return torch.cat(outputs, dim=-1)

    def _run(self, method: str, pixel_values: Tensor, **settings: Any) -> Any:
        """A method of the backbone beside `forward`, with the weights that accelerate's hook brings for that alone."""
        hook = getattr(self.backbone, "_hf_hook", None)
        if hook is None:
            return getattr(self.backbone, method)(pixel_values, **settings)
        (pixel_values,), settings = hook.pre_forward(self.backbone, pixel_values, **settings)
        return hook.post_forward(self.backbone, getattr(self.backbone, method)(pixel_values, **settings))

    def _joined(self, maps: list[Tensor]) -> Float[Tensor, "images patches dim"]:
        """Maps of several stages: as many tokens as the coarsest has places, finer ones side by side in the token.

        Where an image's side is no whole number of the coarsest places, a finer map ends in zeros, or where it ends.
        """
        stages: Any = self.backbone.feature_info
        reductions = [stages[stage]["reduction"] for stage in sorted(self.blocks)]
        folds = [max(reductions) // reduction for reduction in reductions]
        height, width = maps[folds.index(1)].shape[2:]
        tokens = []
        for of, fold in zip(maps, folds, strict=True):
            whole = pad(of, (0, fold * width - of.shape[3], 0, fold * height - of.shape[2]))
            tokens.append(pixel_unshuffle(whole, fold).flatten(2).mT)
        # An early stage's values are several times as large: unnormed they would drown the others.
        return torch.cat([layer_norm(of, of.shape[-1:]) for of in tokens], dim=-1)

    @property
    def num_prefix_tokens(self) -> int:
        return int(getattr(self.backbone, "num_prefix_tokens", 0))

    @property
    def num_kept_prefix_tokens(self) -> int:
        """Class and register tokens in front of the patches of what `forward` returns."""
        return self.num_prefix_tokens if self.prefix_tokens else 0

    def _patches(self, features: Tensor) -> Tensor:
        if not self.gives_map:
            return features if self.prefix_tokens else features[:, self.num_prefix_tokens :]
        if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).mT

    def _read_backbone(self, size: tuple[int, int] | None) -> None:
        """Sets the attributes of `FACTS`. Raises ValueError for a backbone that cannot be used."""
        self.data_config = data_config_of(self.backbone, size)
        self.takes_any_size = hasattr(self.backbone, "dynamic_img_size")
        self.has_fixed_size = bool(self.backbone.pretrained_cfg.get("fixed_input_size")) and not self.takes_any_size
        self.patch_size = patch_size_of(self.backbone)
        self.takes_channels_last = not any(map(breaks_channels_last, self.backbone.modules()))
        self.gives_map, self.num_patches, self.embed_dim = self._measure()
        if not self.gives_map and self.patch_size:
            self._check_patches(self.patch_size)

    @torch.no_grad()
    def _measure(self) -> tuple[bool, int, int]:
        """gives_map, num_patches and embed_dim, from a pass of the backbone on the meta device."""
        image = torch.empty(1, *self.data_config["input_size"], device="meta")
        features = self.backbone.forward_features(image)
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise ValueError(
                f"{self.timm_name} gives neither patch tokens nor one feature map; name another timm model"
            )
        self.gives_map = features.ndim == 4
        try:
            tokens = self._tokens(image) if self.blocks else self._patches(features)
            _, num_patches, embed_dim = tokens.shape
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{self.timm_name} cannot give blocks {list(self.blocks)} joined ({error}); name one, or none"
            ) from error
        height, width = self.image_size
        places = num_patches - self.num_kept_prefix_tokens
        if not self.gives_map and (places == 1 or (height == width and math.isqrt(places) ** 2 != places)):
            raise ValueError(
                f"{self.timm_name} gives {places} tokens, which are no grid of patches; name another model"
            )
        return self.gives_map, num_patches, embed_dim


FACTS = ("data_config", "takes_any_size", "has_fixed_size", "patch_size", "takes_channels_last")
FACTS += ("gives_map", "num_patches", "embed_dim")
"""Attributes of an encoder that do not depend on its weights."""


@functools.lru_cache(maxsize=256)
def facts_of(
    timm_name: str, blocks: tuple[int, ...], size: tuple[int, int] | None, prefix_tokens: bool
) -> dict[str, Any]:
    """The attributes of an encoder that do not depend on its weights, by name.

    They are read from a twin on the meta device, which takes no memory but ten times as long as a tiny net itself, so
    they are cached.
    """
    twin = VisionEncoder.__new__(VisionEncoder)
    nn.Module.__init__(twin)
    twin.timm_name, twin.blocks, twin.prefix_tokens = timm_name, blocks, prefix_tokens
    with torch.device("meta"):
        twin.backbone = create_backbone(timm_name, blocks, size).eval()
    twin._read_backbone(size)
    return {name: getattr(twin, name) for name in FACTS}
