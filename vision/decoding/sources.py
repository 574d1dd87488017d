"""Reading of an image from any source into upright 8-bit RGB pixels; there is no other way."""

import base64
import binascii
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from PIL import Image
from PIL.ImageFile import ImageFile

from vision.decoding.colours import is_ready, strips_of, upright_rgb
from vision.decoding.header import is_image
from vision.decoding.image import DEFAULT_LIMITS, FORMATS, ImageError, ImageLimits, check_size, decode_image
from vision.decoding.parts import ORIENTATION, ImageFault, ImageHeader, exif_orientation
from vision.decoding.tiff import BITS, PHOTOMETRIC, SAMPLE_FORMAT
from vision.near_names import did_you_mean_file

CHANNELS = (1, 3, 4)
URL = re.compile(r"([a-z][a-z0-9+.-]+):(//)?", re.IGNORECASE)  # at least two letters: one is a drive
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
WHITE_SPACE = re.compile(rb"\s+")
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError)  # what Pillow raises for pixels that it cannot load


def read_image(source: Any, *, name: str = "image", limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """An upright 8-bit RGB image, alpha laid on white: the same pixels in whatever form an image comes.

    `source` is a path, a file:// URL, a data: URL, base64 of a file, the bytes of a file, a PIL image, or an array or
    tensor (see `image_of_array`). Nothing is fetched from a network. Compressed bytes, also those of a PIL image that
    Pillow has opened but not decoded yet, are read as `decode_image` does it, with all its checks.

    Raises:
        ImageError: with the file's own name where there is one, else with `name`.
    """
    if isinstance(source, str | os.PathLike):
        return _read_text(os.fspath(source), isinstance(source, os.PathLike), name, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(bytes(source), name=name, limits=limits)
    if isinstance(source, ImageFile) and (data := _undecoded_file(source)) is not None:
        return decode_image(data, name=name, limits=limits)
    if not isinstance(source, Image.Image):
        source = image_of_array(source, name)
    try:
        return _upright(source, limits)
    except ImageFault as fault:
        raise ImageError(name, fault.reason, fault.detail) from fault.__cause__
    except UNREADABLE as error:
        raise ImageError(name, "corrupt", f"a PIL image that cannot be read ({error})") from error


def path_if_there(source: str) -> str | Path:
    """The path of a file that a person has named, also of one whose name looks like a URL, as data:1.jpg."""
    return Path(source) if os.path.lexists(source) else source


def _read_text(source: str, is_path: bool, name: str, limits: ImageLimits) -> Image.Image:
    """Reads a string: a URL if it begins like one, else base64 of an image if no such file exists, else a path."""
    url = None if is_path else URL.match(source)
    if url and url[1].lower() == "data":
        return decode_image(_data_of_url(source, name, limits), name=name, limits=limits)
    if url and url[1].lower() == "file":
        return _read_file(_path_of_url(source), limits)
    if url and url[2]:
        detail = "nothing is fetched from a network; give a file, its bytes, or a data: URL"
        raise ImageError(source, "url_not_allowed", detail)
    if not is_path and not _exists(source) and (data := _image_in_base64(source, limits)) is not None:
        return decode_image(data, name=name, limits=limits)
    return _read_file(source, limits)


def _read_file(path: str, limits: ImageLimits) -> Image.Image:
    if not _exists(path):
        advice = did_you_mean_file(path, "name an image file")
        raise ImageError(path, "missing", f"no such file or folder; {advice}")
    if not os.path.isfile(path):
        raise ImageError(path, "missing", "not a regular file; name an image file")
    with open(path, "rb") as file:
        data = file.read(limits.max_bytes + 1)  # one byte too many is enough to refuse it
    return decode_image(data, name=path, limits=limits)


def _exists(path: str) -> bool:
    try:
        os.stat(path)
    except (OSError, ValueError):  # also a string that can be no path: too long, or with a NUL
        return False
    return True


def _path_of_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # where a machine would stand: brackets, or characters that no name has
        raise ImageError(url, "url_not_allowed", f"no URL ({error}); write file:///path") from error
    if parts.netloc not in ("", "localhost"):
        raise ImageError(url, "url_not_allowed", "a file:// URL of another machine; write file:///path")
    return url2pathname(parts.path)


def _data_of_url(url: str, name: str, limits: ImageLimits) -> bytes:
    """Bytes of data:[type][;base64],...; the type is ignored, as the bytes tell their format."""
    head, comma, body = url.partition(",")
    if not comma:
        raise ImageError(name, "corrupt", "a data: URL without a comma; write data:image/png;base64,...")
    if len(body) > 4 * limits.max_bytes:  # percent-encoded, a byte takes up to three characters
        raise ImageError(name, "too_large", f"over {limits.max_bytes:,} bytes, which is the limit; make it smaller")
    try:
        data = unquote_to_bytes(body)
    except UnicodeEncodeError as error:
        raise ImageError(name, "corrupt", "a data: URL with half a character, a surrogate; write it anew") from error
    if not head.lower().endswith(";base64"):
        return data
    try:
        return from_base64(data)
    except binascii.Error as error:
        raise ImageError(name, "corrupt", f"a data: URL whose base64 is broken ({error})") from error


def _image_in_base64(text: str, limits: ImageLimits) -> bytes | None:
    if len(text) > 2 * limits.max_bytes or not BASE64.fullmatch(text):
        return None
    try:
        data = from_base64(text.encode())
    except binascii.Error:
        return None
    return data if is_image(data) else None


def from_base64(data: bytes) -> bytes:
    """Decodes with or without line breaks and padding."""
    data = WHITE_SPACE.sub(b"", data).rstrip(b"=")
    return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)


def _undecoded_file(image: ImageFile) -> bytes | None:
    """The bytes of the file behind a PIL image that is still as it was opened; None: its pixels count."""
    is_untouched = image.tile and not image.decoderconfig and image.tell() == 0  # not decoded, no draft, frame 0
    if not is_untouched or image.format not in FORMATS or image.fp is None or image.fp.closed:
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    return data


def _upright(image: Image.Image, limits: ImageLimits) -> Image.Image:
    """Upright RGB from pixels that Pillow has decoded, by the rules for those that are decoded here."""
    check_size(image.width, image.height, limits)
    image.load()
    header = _header_of(image)
    if is_ready(image, header):
        return upright_rgb([image.copy() if header.icc_profile else image], header)
    return upright_rgb([_with_8_bit_key(strip) for strip in strips_of(image)], header)


def _header_of(image: Image.Image) -> ImageHeader:
    """The header of an image that Pillow opened, by the rules of `read_tiff`.

    A copy of a TIFF has lost its tags: its greys count as 16 bits from black to white, and its integers as signed.
    """
    icc, tags = image.info.get("icc_profile"), getattr(image, "tag_v2", None)
    header = ImageHeader(
        *("", image.width, image.height, []),
        orientation=_orientation(image),
        icc_profile=icc if isinstance(icc, bytes) else b"",
    )
    if tags is None:
        return header
    return header._replace(
        grey_levels=4096 if tags.get(BITS) == (12,) else header.grey_levels,
        is_unsigned=tags.get(SAMPLE_FORMAT, (1,)) == (1,),
        is_negative=tags.get(PHOTOMETRIC) == 0,
    )


def _with_8_bit_key(strip: Image.Image) -> Image.Image:
    """Gives the transparent colour of a PNG with 16 bits a colour the 8 bits that Pillow leaves of its pixels.

    Three numbers below 256 are taken as 8-bit ones, since nothing tells how many bits the file had. Nor is it known for
    a grey PNG of 2 or 4 bits, whose key stays in the file's scale.
    """
    key = strip.info.get("transparency")
    if strip.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        strip.info["transparency"] = tuple(value >> 8 for value in key)
    return strip


def _orientation(image: Image.Image) -> int:
    """EXIF orientation from the file, if there was one, else the one set on the image."""
    exif = image.info.get("exif")
    return exif_orientation(exif) if isinstance(exif, bytes) else image.getexif().get(ORIENTATION, 1)


def image_of_array(array: Any, name: str) -> Image.Image:
    """A PIL image of an array or tensor: uint8, uint16, or floats within 0 to 1; a grid, channels last or first.

    Of two axes that could be the channels a tensor has the first, an array the last.
    """
    import numpy as np

    first_means_channels = hasattr(array, "is_floating_point")  # a tensor; torch itself is not loaded for it
    if first_means_channels:
        try:
            array = array.detach().cpu()
            array = (array.float() if array.is_floating_point() else array).numpy()
        except (TypeError, RuntimeError) as error:  # sparse, or without values
            raise ImageError(name, "unknown_array", f"a tensor that is no array: {error}") from error
    if not isinstance(array, np.ndarray):
        kinds = "a path, a file:// or data: URL, the bytes of a file, a PIL image, an array or a tensor"
        raise ImageError(name, "unknown_type", f"expected {kinds}, got {type(array).__name__}")
    if array.ndim == 3 and array.shape[0] in CHANNELS and (first_means_channels or array.shape[-1] not in CHANNELS):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating) and array.size and array.min() >= 0 and array.max() <= 1:
        array = (array * 255).round().astype(np.uint8)
    if array.dtype == np.uint16 and array.ndim == 3:
        array = (array >> 8).astype(np.uint8)  # as Pillow reads files of 16 bits a colour
    is_grid = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in CHANNELS)
    if array.dtype not in (np.uint8, np.uint16) or not is_grid or not array.size:
        expected = "uint8, uint16 or floats within 0 to 1, two axes or three with 1, 3 or 4 channels"
        values = f", values {array.min():g} to {array.max():g}" if array.size and array.dtype.kind in "iuf" else ""
        raise ImageError(
            name, "unknown_array", f"expected {expected}; got {array.dtype} of shape {array.shape}{values}"
        )
    return Image.fromarray(np.ascontiguousarray(array))
