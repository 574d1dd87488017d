"""ICC profiles: conversion of an image's colours to sRGB, which encoders were trained with.

A camera that writes Display P3 or Adobe RGB stores other numbers for the same red. Read as sRGB they look dull.
"""

import io
from functools import lru_cache

from PIL import Image, ImageCms

from vision.decoding.parts import MAX_PROFILE_BYTES

SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}  # by Pillow's mode; a profile for another mode says nothing
KEPT = 16  # transforms of the last profiles: the images of a dataset share a few
SAME_LEVELS = 1  # of 255; a profile that moves no colour further is sRGB, whatever it is called
STEPS = (0, 8, 16, 32, 64, 96, 128, 160, 192, 224, 240, 255)


def convert_to_srgb(image: Image.Image, icc_profile: bytes, *, in_place: bool = False) -> Image.Image:
    """An L, RGB or CMYK image in sRGB if a profile says that it is something else, else the image as it came.

    A profile that is damaged, too large or for another kind of pixels is passed over, as browsers do.
    """
    transform = _transform_to_srgb(icc_profile, image.mode) if icc_profile else None
    if transform is None:
        return image
    if in_place and image.mode == "RGB":
        transform.apply_in_place(image)
        return image
    return transform.apply(image)


@lru_cache(maxsize=KEPT)
def _transform_to_srgb(icc_profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB; None: the pixels are sRGB already, or the profile cannot be used."""
    if mode not in SPACES or len(icc_profile) > MAX_PROFILE_BYTES:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        if profile.profile.xcolor_space != SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            *(profile, ImageCms.createProfile("sRGB"), mode, "RGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if _is_identity(transform, mode) else transform


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "CMYK":
        return False
    levels = bytes(STEPS)
    colours = levels if mode == "L" else bytes(c for r in levels for g in levels for b in levels for c in (r, g, b))
    image = Image.frombytes(mode, (len(colours) // len(mode), 1), colours)
    before, after = image.convert("RGB").tobytes(), transform.apply(image).tobytes()
    return all(abs(a - b) <= SAME_LEVELS for a, b in zip(before, after, strict=True))
