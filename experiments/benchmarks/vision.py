"""From bytes to normalised tensors against timm's own transform, packed tiles against padded ones, the encoder against
the bare timm model.

Run it with `python -m experiments.benchmarks.vision`. One thread; some five minutes on a quiet machine. The photo in
this repository is 160 pixels wide; larger files are mosaics of it, which hold a photo's detail in every block, and
enlargements, which do not.
"""

import argparse
import io
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from experiments.benchmarks.measure import Timings, alternate, report, table
from vision.decoding.image import decode_image
from vision.encoder import VisionEncoder
from vision.forms.batches import prepare_image
from vision.forms.tiling import tile_image
from vision.transform import ImageTransform

PHOTO = Path(__file__).parents[2] / "tests" / "samples" / "fox.jpg"
MODEL = "vit_tiny_patch16_224"
SMALL = {"photo, 160 x 160": None, "mosaic, 512 x 384": (512, 384), "mosaic, 640 x 480": (640, 480)}
LARGE = {"mosaic, 2048 x 1536": (2048, 1536), "mosaic, 3000 x 4000": (3000, 4000), "mosaic, 4000 x 3000": (4000, 3000)}
ENLARGED = {"enlarged photo, 4000 x 3000": (4000, 3000)}
MAX_TILES = 6
MIX = [(640, 480), (480, 640), (1024, 768), (500, 375), (1920, 1080), (300, 300), (224, 200), (1080, 1920), (800, 200)]
"""Sizes of images as they come: cameras and telephones both ways, thumbnails, a banner."""
ENCODERS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "tf_efficientnet_lite0")
BATCH = 4
GOALS = {"small": 1.0, "encoder": 0.98}


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def mosaic(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size)
    for top in range(0, size[1], photo.height):
        for left in range(0, size[0], photo.width):
            image.paste(photo, (left, top))
    return image


def jpeg_files(photo: Image.Image) -> dict[str, bytes]:
    mosaics = {name: jpeg(mosaic(photo, size)) for name, size in (SMALL | LARGE).items() if size}
    enlarged = {name: jpeg(photo.resize(size, Image.Resampling.BICUBIC)) for name, size in ENLARGED.items()}
    return {next(iter(SMALL)): PHOTO.read_bytes(), **mosaics, **enlarged}


def measure_images(files: dict[str, bytes], data_config: dict, rounds: int) -> tuple[dict, list[list[object]]]:
    """Images a second of timm's transform on a PIL image of the bytes, and of ours."""
    theirs: Any = create_transform(**data_config)
    transform = ImageTransform(data_config)
    figures, lines = {}, []
    for name, data in files.items():
        times = 20 if name in SMALL else 1
        cases = {
            "ours": partial(repeat, times, partial(prepare_image, transform, data, name=name)),
            "timm": partial(repeat, times, lambda data=data: theirs(Image.open(io.BytesIO(data)).convert("RGB"))),
        }
        timings = alternate(cases, rounds)
        speed = {case: round(times / timings.median(case), 1) for case in cases}
        over = timings.speed_over("ours", "timm")
        figures[name] = {"bytes": len(data), "images_per_second": speed, "over_timm": over}
        goal = "1.00" if name in SMALL else "–"
        lines.append([name, f"{len(data) / 1024:,.0f}", f"{speed['timm']:,}", f"{speed['ours']:,}", spread(over), goal])
        print(*lines[-1], sep=" | ", flush=True)
    return figures, lines


def repeat(times: int, run: Callable[[], object]) -> None:
    for _ in range(times):
        run()


def spread(ratio: dict[str, float]) -> str:
    return f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"


def measure_tiles(data_config: dict, rounds: int) -> dict:
    """Images a second through the encoder: their tiles end to end, and each padded to the most that one has."""
    transform = ImageTransform(data_config, max_tiles=MAX_TILES)
    encoder = VisionEncoder(MODEL).requires_grad_(False).eval()
    photo = Image.open(PHOTO).convert("RGB")
    images = [tile_image(transform, photo.resize(size)).pixel_values for size in MIX]
    most = max(map(len, images))
    packed = torch.cat(images)
    padded = torch.cat([torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]) for x in images])
    timings = alternate(
        {"packed": partial(encode, encoder, packed), "padded": partial(encode, encoder, padded)}, rounds
    )
    return {
        "tiles": {"packed": len(packed), "padded": len(padded)},
        "images_per_second": {case: round(len(images) / timings.median(case), 2) for case in timings.seconds},
        "packed_over_padded": timings.speed_over("packed", "padded"),
    }


@torch.no_grad()
def encode(encoder: Callable[[Tensor], Tensor], pixel_values: Tensor) -> None:
    for batch in pixel_values.split(BATCH):
        encoder(batch)


def measure_encoders(rounds: int) -> tuple[dict, list[list[object]]]:
    figures, lines = {}, []
    for name in ENCODERS:
        encoder = VisionEncoder(name).requires_grad_(False).eval()
        bare: Any = timm.create_model(name, num_classes=0).eval()
        bare.load_state_dict(encoder.backbone.state_dict())
        pixels = torch.randn(2 * BATCH, *encoder.data_config["input_size"])
        cases = {"ours": partial(encode, encoder, pixels), "timm": partial(encode, bare.forward_features, pixels)}
        timings: Timings = alternate(cases, rounds)
        speed = {case: round(len(pixels) / timings.median(case), 1) for case in cases}
        figures[name] = {"images_per_second": speed, "over_timm": timings.speed_over("ours", "timm")}
        lines.append(
            [name, speed["timm"], speed["ours"], spread(figures[name]["over_timm"]), f"{GOALS['encoder']:.2f}"]
        )
        print(*lines[-1], sep=" | ", flush=True)
    return figures, lines


def text_of(images: Iterable, tiles: dict, encoders: Iterable) -> str:
    image_table = table(
        ["file, JPEG of quality 90", "KiB", "timm, images/s", "ours", "ours over timm", "goal"], [*images]
    )
    speed, count = tiles["images_per_second"], tiles["tiles"]
    tile_table = table(
        ["tiles of the mix", "tiles", "images/s", "over padded"],
        [
            ["packed", count["packed"], speed["packed"], spread(tiles["packed_over_padded"])],
            ["padded to the most", count["padded"], speed["padded"], "1"],
        ],
    )
    encoder_table = table(["encoder", "timm, images/s", "ours", "ours over timm", "goal"], [*encoders])
    return (
        "# Vision\n\nOne thread; medians of alternating rounds, in brackets the middle half of the rounds.\n\n"
        "## From bytes to a normalised tensor of 224 x 224\n\n"
        "timm: its own transform of the model's data config (resize, centre crop) on the image that Pillow opens "
        "from the bytes. Ours checks the bytes and shows the whole image, padded. Large files: mosaics of the "
        f"repository's photo, and the photo enlarged.\n\n{image_table}\n\n"
        f"## Tiles\n\n{len(MIX)} images of usual sizes, at most {MAX_TILES} tiles and a thumbnail each, through "
        f"{MODEL} with random weights.\n\n{tile_table}\n\n## Encoder\n\n{encoder_table}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    data_config = resolve_model_data_config(timm.create_model(MODEL))
    files = jpeg_files(decode_image(PHOTO.read_bytes(), name=PHOTO.name))
    images, image_lines = measure_images(files, data_config, arguments.rounds)
    tiles = measure_tiles(data_config, arguments.rounds)
    encoders, encoder_lines = measure_encoders(arguments.rounds)
    figures = {"images": images, "tiles": tiles, "encoders": encoders}
    report("vision", text_of(image_lines, tiles, encoder_lines), {"pillow": version("pillow"), **figures})


if __name__ == "__main__":
    main()
