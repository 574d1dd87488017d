"""Conversion of Pillow's modes to upright 8-bit RGB on white, in strips so that little memory is held twice."""

from collections.abc import Iterator
from typing import Any

from PIL import Image

from vision.decoding.parts import ImageFault, ImageHeader
from vision.decoding.profiles import SPACES, convert_to_srgb

WHITE = (255, 255, 255)
STRIP_PIXELS = 2**19
NOMINAL_MAXIMA = (1.0, 255.0, 65_535.0)
SAMPLED_PIXELS, STRAYS = 2**20, 0.001  # of the values, at either end, one in a thousand does not count
OVERSHOOT, DARKEST = 1 / 8, 1 / 16
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_ITS_SIDE = (5, 6, 7, 8)  # the orientations that swap width and height


def strips_of(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def upright_rgb(strips: list[Image.Image], header: ImageHeader) -> Image.Image:
    """The whole image from its strips, which are taken out of the list, the last first, to free their memory."""
    if len(strips) == 1 and is_ready(strips[0], header):
        return convert_to_srgb(strips[0], header.icc_profile, in_place=True)
    is_on_its_side, levels = header.orientation in ON_ITS_SIDE, grey_range(strips, header)
    levels = levels[::-1] if header.is_negative else levels
    size = (header.height, header.width) if is_on_its_side else (header.width, header.height)
    image, bottom = Image.new("RGB", size, None), header.height
    while strips:
        strip = rgb_on_white(strips.pop(), levels, header)
        # The rows of a strip count from the other end where the orientation turns the image's bottom up or left.
        top = bottom - strip.height
        place = header.height - bottom if header.orientation in (3, 4, 6, 7) else top
        bottom = top
        if header.orientation in TURNS:
            strip = strip.transpose(TURNS[header.orientation])
        image.paste(strip, (place, 0) if is_on_its_side else (0, place))
    return image


def is_ready(image: Image.Image, header: ImageHeader) -> bool:
    return image.mode == "RGB" and not image.has_transparency_data and header.orientation == 1


def grey_range(strips: list[Image.Image], header: ImageHeader) -> tuple[float, float]:
    """The values that mean black and white in a grey image of more than 8 bits.

    No header gives them for 32-bit integers and floats (see `_guessed_range`).

    Raises:
        ImageFault: pixels that are no finite numbers.
    """
    mode = strips[0].mode
    if mode not in ("I", "F"):
        return 0.0, header.grey_levels - 1.0
    import numpy

    all_values = [_values(strip, header.is_unsigned) for strip in strips]
    if not all(numpy.isfinite([values.min(), values.max()]).all() for values in all_values):
        raise ImageFault("corrupt", "pixels that are no finite numbers")
    step = max(1, sum(values.size for values in all_values) // SAMPLED_PIXELS) | 1  # odd, so that it meets every column
    sample = numpy.concatenate([values.ravel()[::step] for values in all_values]).astype(numpy.float64)
    low, high = numpy.quantile(sample, (STRAYS, 1 - STRAYS), method="closest_observation")
    return _guessed_range(float(low), float(high), NOMINAL_MAXIMA if mode == "F" else NOMINAL_MAXIMA[1:])


def _guessed_range(low: float, high: float, maxima: tuple[float, ...]) -> tuple[float, float]:
    """Black and white of values that lie, but for a few, between `low` and `high`.

    It is 0..1, 0..255 or 0..65535, the smallest that holds them. Values that leave it by an eighth are clipped, as
    resampling overshoots. Far above one range, but still in the darkest sixteenth of the next, neither is assumed:
    0..10 is shown as it is, and not as ten levels of 255. Other values, negative ones too, have their own extremes.

    Examples (floats):

        0 to 0.25   ->  0..1      a dark image
        0 to 1.001  ->  0..1      overshoot
        0 to 10     ->  0..10     nothing that is known
        0 to 100    ->  0..255
        -1 to 1     ->  -1..1
    """
    for maximum in maxima:
        if low < -OVERSHOOT * maximum or high > (1 + OVERSHOOT) * maximum:
            continue
        if maximum == maxima[0] or high >= DARKEST * maximum:
            return 0.0, maximum
        low = min(low, 0.0)
        break
    return low, max(high, low + 1)


def rgb_on_white(strip: Image.Image, levels: tuple[float, float], header: ImageHeader) -> Image.Image:
    if strip.mode.startswith("I") or strip.mode == "F":
        strip = _scaled(strip, *levels, header.is_unsigned)
    if strip.mode == "La":  # premultiplied
        strip = strip.convert("LA")
    if strip.mode == "LAB":
        return _lab_to_rgb(strip)
    if not strip.has_transparency_data:
        colours = strip if strip.mode in SPACES else strip.convert("RGB")
        return convert_to_srgb(colours, header.icc_profile).convert("RGB")
    whole, white = strip.convert("RGBA"), Image.new("RGB", strip.size, WHITE)
    colours = whole.getchannel("R") if strip.mode in ("L", "LA") else whole.convert("RGB")
    white.paste(convert_to_srgb(colours, header.icc_profile).convert("RGB"), mask=whole.getchannel("A"))
    return white


def _values(strip: Image.Image, is_unsigned: bool) -> Any:
    """Pixels as numbers; Pillow takes all integers of 32 bits for signed ones."""
    import numpy

    values = numpy.asarray(strip)
    return values.view(numpy.uint32) if strip.mode == "I" and is_unsigned else values


def _scaled(strip: Image.Image, low: float, high: float, is_unsigned: bool) -> Image.Image:
    import numpy

    values = _values(strip, is_unsigned)
    unit = (values.astype(numpy.float64) - low) / (high - low)
    grey = Image.fromarray((unit.clip(0, 1) * 255).round().astype(numpy.uint8))
    transparent = strip.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(numpy.where(values == transparent, 0, 255).astype(numpy.uint8)))
    return grey


def _lab_to_rgb(strip: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(strip)
