"""From Pillow's many modes to upright 8-bit RGB on white, strip by strip so that little memory is held twice."""

from collections.abc import Iterator
from typing import Any

from PIL import Image

from vision.decoding.parts import ImageFault, ImageHeader

WHITE = (255, 255, 255)
STRIP_PIXELS = 2**19
NOMINAL_MAXIMA = (1.0, 255.0, 65_535.0)
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
TURNED_LEFT, TURNED_UP = (2, 3, 6, 7), (3, 4, 7, 8)  # those that put the end of a row left, of a column on top


def strips_of(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def upright_rgb(strips: list[Image.Image], header: ImageHeader) -> Image.Image:
    """The whole image of its strips, which are taken out of the list, the last first, to give their memory back."""
    if len(strips) == 1 and is_ready(strips[0], header):
        return strips[0]
    is_on_its_side, levels = header.orientation in ON_ITS_SIDE, grey_range(strips, header)
    levels = levels[::-1] if header.is_negative else levels
    size = (header.height, header.width) if is_on_its_side else (header.width, header.height)
    image, bottom = Image.new("RGB", size, None), header.height
    while strips:
        strip = rgb_on_white(strips.pop(), levels, is_unsigned=header.is_unsigned)
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

    Of 32-bit integers and floats no header tells them. There it is the smallest of 0..1 (floats only), 0..255 and
    0..65535 that holds all the values, else their own extremes.
    """
    mode = strips[0].mode
    if mode not in ("I", "F"):
        return 0.0, header.grey_levels - 1.0
    import numpy

    extremes = [(values.min(), values.max()) for values in (_values(strip, header.is_unsigned) for strip in strips)]
    low, high = float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
    if not numpy.isfinite([low, high]).all():
        raise ImageFault("corrupt", "pixels that are no finite numbers")
    maxima = NOMINAL_MAXIMA if mode == "F" else NOMINAL_MAXIMA[1:]
    nominal = next((maximum for maximum in maxima if low >= 0 and high <= maximum), None)
    return (low, max(high, low + 1)) if nominal is None else (0.0, nominal)


def rgb_on_white(strip: Image.Image, levels: tuple[float, float], *, is_unsigned: bool) -> Image.Image:
    if strip.mode.startswith("I") or strip.mode == "F":
        strip = _scaled(strip, *levels, is_unsigned)
    if strip.mode == "La":  # premultiplied
        strip = strip.convert("LA")
    if strip.mode == "LAB":
        return _lab_to_rgb(strip)
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    strip, white = strip.convert("RGBA"), Image.new("RGB", strip.size, WHITE)
    white.paste(strip, mask=strip.getchannel("A"))
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
