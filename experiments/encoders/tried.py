"""Which timm nets can be an encoder: each is built at its own size and shown images, on the meta device.

Shapes alone are computed there, so that nets of any size are tried in seconds, without weights and without memory; that
the numbers are timm's, `tests/vision/test_encoder.py` compares. The table in docs/vision.md is written by

    python -m experiments.encoders.tried
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from vision.encoder import VisionEncoder
from vision.forms.native_resolution import patchify
from vision.whole_files import write_whole

PAGE = Path(__file__).parents[2] / "docs" / "vision.md"
BEGIN, END = "<!-- written by experiments.encoders.tried -->\n", "<!-- end -->\n"
NETS = {
    "ViT": "vit_small_patch16_224",
    "ViT on a ResNet": "vit_tiny_r_s16_p8_224",
    "DeiT III": "deit3_small_patch16_224",
    "DeiT, distilled": "deit_small_distilled_patch16_224",
    "BEiT v2": "beitv2_base_patch16_224",
    "EVA-02": "eva02_small_patch14_224",
    "DINOv2": "vit_small_patch14_dinov2",
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "SigLIP": "vit_base_patch16_siglip_224",
    "SigLIP So400m": "vit_so400m_patch14_siglip_384",
    "CLIP": "vit_base_patch16_clip_224",
    "AIMv2": "aimv2_large_patch14_224",
    "Perception Encoder": "vit_pe_core_small_patch16_384",
    "Perception Encoder, spatial": "vit_pe_spatial_tiny_patch16_512",
    "SAM": "samvit_base_patch16",
    "NaFlexViT": "naflexvit_base_patch16_gap",
    "Swin": "swin_tiny_patch4_window7_224",
    "Hiera": "hiera_tiny_224",
    "MaxViT": "maxvit_tiny_tf_224",
    "MViTv2": "mvitv2_tiny",
    "PVT v2": "pvt_v2_b0",
    "XCiT": "xcit_tiny_12_p16_224",
    "CaiT": "cait_xxs24_224",
    "MLP-Mixer": "mixer_s16_224",
    "ConvNeXt": "convnext_tiny",
    "ResNet": "resnet50",
    "ResNet of CLIP": "resnet50_clip",
    "RegNet": "regnety_016",
    "EfficientNet": "efficientnet_b0",
    "EfficientNetV2": "tf_efficientnetv2_s",
    "MobileNetV4": "mobilenetv4_conv_small",
    "FastViT": "fastvit_t8",
    "MambaOut": "mambaout_femto",
    "PiT": "pit_ti_224",
    "ViTamin": "vitamin_small_224",
    "VOLO": "volo_d1_224",
    "CrossViT": "crossvit_tiny_240",
}
SIZES = {"vit_so400m_patch14_siglip_384": 378}  # its own 384 are no whole number of patches, and refused
SEVERAL = 3  # a thumbnail and two tiles
BUDGET = 256  # patches of an image in its native resolution


@dataclass(frozen=True)
class Tried:
    """Result of one net."""

    timm_name: str
    image_size: tuple[int, int] | None = None
    """Height and width, its own; None: it was refused."""
    tokens: int = 0
    """Tokens of an image of that size, without class and register tokens."""
    width: int = 0
    patch_size: int | None = None
    """Pixels; None: a feature map, or patches that are not square."""
    refusal: str | None = None
    """The sentence with which it is refused."""
    native_refusal: str | None = None
    """The sentence with which native resolution is; None: it works."""


def try_net(timm_name: str, image_size: int | None = None) -> Tried:
    """Builds the net, at its own size unless told, and gives it images in each form; tiles are several of one size."""
    with torch.device("meta"):
        try:
            encoder = VisionEncoder(timm_name, image_size=image_size)
        except ValueError as error:
            return Tried(timm_name, refusal=str(error))
        encoder.image_transform(max_tiles=SEVERAL - 1)
        tokens = encoder.eval()(torch.empty(SEVERAL, *encoder.data_config["input_size"]))
        assert tokens.shape == (SEVERAL, encoder.num_patches, encoder.embed_dim), tokens.shape
        return Tried(
            timm_name,
            encoder.image_size,
            encoder.num_patches,
            encoder.embed_dim,
            encoder.patch_size,
            native_refusal=_native_refusal(encoder),
        )


def _native_refusal(encoder: VisionEncoder) -> str | None:
    """None where images of other sizes are encoded: half as high and half as wide as the net's own, strips of a single
    patch's width, and a single patch.
    """
    try:
        patch = encoder.image_transform(max_patches=BUDGET).patch_size
    except ValueError as error:
        return str(error)
    assert patch is not None
    rows, columns = (side // patch for side in encoder.image_size)
    grids = [(rows // 2, columns), (rows, columns // 2), (1, columns), (rows, 1), (1, 1)]
    patches, _ = patchify([torch.empty(3, patch * down, patch * across) for down, across in grids], patch)
    flat, lengths = encoder.forward_native(patches, torch.tensor(grids, device="cpu"))
    expected = [encoder.num_tokens(patch * down, patch * across) for down, across in grids]
    assert lengths.tolist() == expected and flat.shape == (sum(expected), encoder.embed_dim), (
        lengths,
        expected,
        flat.shape,
    )
    return None


def as_row(family: str, tried: Tried) -> str:
    if tried.refusal or tried.image_size is None:
        return f"| {family} | `{tried.timm_name}` | | | | no: {_reason(tried, tried.refusal)} | no |"
    size = " x ".join(map(str, tried.image_size))
    native = "yes" if tried.native_refusal is None else f"no: {_reason(tried, tried.native_refusal)}"
    return (
        f"| {family} | `{tried.timm_name}` | {size} | {tried.tokens} x {tried.width} | {tried.patch_size or 'map'} "
        f"| yes | {native} |"
    )


def _reason(tried: Tried, sentence: str | None) -> str:
    """The sentence without the name in front and the advice behind."""
    return str(sentence).removeprefix(f"{tried.timm_name} ").partition(";")[0].partition(", so")[0]


def table() -> str:
    head = "family | timm model | pixels | tokens x width | patch | one size, tiles | native resolution"
    rows = [as_row(family, try_net(name, SIZES.get(name))) for family, name in NETS.items()]
    return "\n".join([f"| {head} |", "| --- " * len(head.split("|")) + "|", *rows, ""])


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    write_whole(PAGE, f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
