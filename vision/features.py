"""A frozen encoder's patch tokens, computed once and kept on disk."""

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vision.allocator import keep_freed_memory
from vision.decoding.image import ImageError
from vision.decoding.names import number_of
from vision.encoder import VisionEncoder
from vision.forms.batches import pack_images, prepare_image
from vision.transform import ImageTransform
from vision.whole_files import remove_remains, write_whole

logger = logging.getLogger(__name__)

CHUNK, CHUNK_BYTES = 256, 64 * 2**20
"""Images and bytes of a chunk, whichever is reached first: an interrupted fill loses at most one chunk."""
BATCH, CPU_BATCH = 64, 4
"""Images or tiles that the encoder takes at once. On a CPU more would not fit the processor's cache: in batches of 4,
EfficientNet-Lite0 encodes 1.5 times as many images a second as in batches of 16."""
CPU_BATCHES = 2
"""Batches that a CPU encodes at once, each on all of torch's threads, if there are several: where one waits for its
slowest thread, or for Python, the other runs. On two cores 1.23 times as many images a second, and the same bits."""
PREPARED = 4
"""Batches that are prepared at once for an accelerator: a chunk has no more."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class FeaturesError(ValueError):
    """Features that were asked for are not in the cache, or cannot be kept in it."""

    exit_code = 3


class ImageFeatures(NamedTuple):
    """Encoder output of one image."""

    rows: Float[Tensor, "rows *tokens features"]
    """(1, P, F) of an image of one size, (tiles, P, F), or (P, F) in native resolution."""
    tile_ids: Int[Tensor, " rows"] | None = None
    grid: Int[Tensor, " 2"] | None = None
    """Rows and columns of patches, in native resolution."""


def encoder_fingerprint(encoder: VisionEncoder, transform: ImageTransform) -> str:
    """SHA-256 of all that decides an image's tokens: the net, its weights, the blocks read, the preprocessing."""
    facts = [encoder.timm_name, encoder.blocks, transform.to_dict(), *(["prefix_tokens"] * encoder.prefix_tokens)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FeatureCache:
    """Patch tokens, keyed by the SHA-256 of an image's bytes, in chunks of images under `folder`.

    Another encoder, preprocessing or dtype has a folder of its own. A chunk is written whole or not at all, so that an
    interrupted fill can resume; `fill` computes a damaged chunk anew. Several processes may fill one cache at once: a
    chunk is named after its images, so that no two overwrite each other's but with the same tokens, and each process
    takes over the chunks that others have finished.

    Args:
        dtype: What is stored: float16 (11 bits of a number), bfloat16 (8 bits, for features that float16 cannot hold),
            or float32 at twice the size.
    """

    def __init__(self, folder: Path, fingerprint: str, *, dtype: torch.dtype = torch.float16) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"features are kept as {', '.join(str(x)[6:] for x in DTYPES)}, not as {dtype}")
        self.folder = folder / (fingerprint[:16] + ("" if dtype == torch.float16 else f"-{str(dtype)[6:]}"))
        self.fingerprint = fingerprint
        self.dtype = dtype
        self.places: dict[str, ImageFeatures] = {}  # views into chunks that are mapped into memory
        self.damaged: dict[Path, str] = {}
        self._seen: set[Path] = set()
        self._open_chunks()

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self.places

    def get(self, sha256s: Sequence[str]) -> dict[str, Tensor]:
        """The images one after another as image inputs of the model, features in float32.

        - one size: `image_features` (images, patches, features);
        - tiles: `image_features` (tiles, patches, features), `tile_ids` and `tiles_per_image`;
        - native resolution: `image_features` (tokens, features), `encoder_lengths` and `image_grids`.

        Raises:
            FeaturesError: an image is not in the cache.
        """
        self._refuse_absent(sha256s)
        found = [self.places[sha256] for sha256 in sha256s]
        inputs = {"image_features": torch.cat([image.rows.float() for image in found])}
        lengths = torch.tensor([len(image.rows) for image in found])
        if found[0].tile_ids is not None:
            tile_ids = torch.cat([image.tile_ids for image in found if image.tile_ids is not None])
            return inputs | {"tile_ids": tile_ids, "tiles_per_image": lengths}
        if found[0].grid is None:
            return inputs
        grids = torch.stack([image.grid for image in found if image.grid is not None])
        return inputs | {"encoder_lengths": lengths, "image_grids": grids}

    def mean(self, sha256s: Sequence[str]) -> Float[Tensor, "images features"]:
        """The mean of each image's tokens. Raises FeaturesError for an image that is not in the cache."""
        self._refuse_absent(sha256s)
        return torch.stack([self.places[sha256].rows.float().flatten(0, -2).mean(0) for sha256 in sha256s])

    def _refuse_absent(self, sha256s: Sequence[str]) -> None:
        if absent := [sha256 for sha256 in sha256s if sha256 not in self.places]:
            reasons = [f"{path.name} {reason}" for path, reason in self.damaged.items()]
            others = {path.parent.name for path in self.folder.parent.glob("*/chunk-*")} - {self.folder.name}
            if others:
                reasons.append(
                    f"beside it are features of other encoders, preprocessings or dtypes: {', '.join(sorted(others))}"
                )
            verb = "is" if len(absent) == 1 else "are"
            what = f"{len(absent):,} of {number_of(len(sha256s), 'image')} ({absent[0][:12]} first) {verb} not in "
            what += str(self.folder)
            raise FeaturesError("; ".join([what, *reasons, "fill the cache with this encoder"]))

    def fill(
        self,
        images: Iterable[tuple[str, bytes]],
        encoder: VisionEncoder,
        transform: ImageTransform,
        *,
        count: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, str]:
        """Encodes the images, given as (SHA-256, bytes), that the cache lacks.

        Args:
            count: Number of images to come, all missing but for those that other processes finish meanwhile.
            on_progress: Called with the number of images done and with `count`.

        Returns:
            The images that cannot be used, and why.

        Raises:
            OSError: the disk has no room for the features (ENOSPC), before any is computed.
            FeaturesError: the encoder is another one, or its features do not fit the dtype.
            ValueError: the encoder is being trained.
        """
        if not encoder.is_frozen:
            raise ValueError("features of an encoder that is being trained cannot be cached; freeze it or do not cache")
        if encoder_fingerprint(encoder, transform) != self.fingerprint:
            raise FeaturesError(
                f"{self.folder} is for another encoder or preprocessing than {encoder.timm_name} as given"
            )
        self._check_room(encoder, transform, count)
        for path, reason in self.damaged.items():
            logger.warning(f"{path} {reason}: its images are encoded again")
            path.unlink(missing_ok=True)
            self._seen.discard(path)
        self.damaged.clear()
        remove_remains(self.folder)

        refused: dict[str, str] = {}
        done = 0
        for group in _batched(images, self._images_of_chunk(encoder, transform)):
            self._open_chunks()
            wanted = {sha256: data for sha256, data in group if sha256 not in self.places}
            encoded = dict(_encode(wanted, encoder, transform, refused, self.dtype))
            if encoded:
                self._write(encoded)
            done += len(group)
            if on_progress:
                on_progress(done, count)
        return refused

    def _write(self, encoded: Mapping[str, ImageFeatures]) -> None:
        path = self.folder / f"chunk-{hashlib.sha256(''.join(encoded).encode()).hexdigest()[:16]}.safetensors"
        metadata = {"fingerprint": self.fingerprint, "images": json.dumps(list(encoded))}
        found = list(encoded.values())
        tensors = {
            "features": torch.cat([image.rows for image in found]),
            "lengths": torch.tensor([len(image.rows) for image in found]),
        }
        if found[0].tile_ids is not None:
            tensors["tile_ids"] = torch.cat([image.tile_ids for image in found if image.tile_ids is not None])
        if found[0].grid is not None:
            tensors["grids"] = torch.stack([image.grid for image in found if image.grid is not None])
        write_whole(path, save(tensors, metadata))
        self._open(path)

    def _open_chunks(self) -> None:
        for path in sorted({*self.folder.glob("chunk-*.safetensors")} - self._seen):
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no dict
        except FileNotFoundError:  # another process found it damaged
            return
        except SafetensorError as error:
            self.damaged[path] = f"is damaged ({error})"
            return
        finally:
            self._seen.add(path)
        if metadata.get("fingerprint") != self.fingerprint:
            self.damaged[path] = f"is of another encoder (fingerprint {metadata.get('fingerprint')})"
        elif tensors["features"].dtype != self.dtype:
            self.damaged[path] = f"holds {tensors['features'].dtype}, not {self.dtype}"
        else:
            self.places |= zip(json.loads(metadata["images"]), _parted(tensors), strict=True)

    def _images_of_chunk(self, encoder: VisionEncoder, transform: ImageTransform) -> int:
        most = transform.max_patches or encoder.num_patches * (transform.max_tiles + 1)
        return max(1, min(CHUNK, CHUNK_BYTES // (most * encoder.embed_dim * self.dtype.itemsize)))

    def _check_room(self, encoder: VisionEncoder, transform: ImageTransform, count: int) -> None:
        """Raises OSError unless one tile an image, or one patch in native resolution, fits on the disk."""
        least = 1 if transform.max_patches else encoder.num_patches
        needed = count * least * encoder.embed_dim * self.dtype.itemsize
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            room = f"features of {number_of(count, 'image')} need {needed:,} bytes, {free:,} are free"
            raise OSError(errno.ENOSPC, room, str(self.folder))  # who shows it says what to do


def _parted(tensors: Mapping[str, Tensor]) -> list[ImageFeatures]:
    """The images of a chunk. An older chunk has no lengths, and a row for each image."""
    features = tensors["features"]
    lengths = tensors["lengths"].tolist() if "lengths" in tensors else [1] * len(features)
    rows = features.split(lengths)
    tile_ids = tensors["tile_ids"].split(lengths) if "tile_ids" in tensors else [None] * len(rows)
    grids = tensors["grids"] if "grids" in tensors else [None] * len(rows)
    return [ImageFeatures(*image) for image in zip(rows, tile_ids, grids, strict=True)]


def _encode(
    wanted: Mapping[str, bytes],
    encoder: VisionEncoder,
    transform: ImageTransform,
    refused: dict[str, str],
    dtype: torch.dtype,
) -> Iterator[tuple[str, ImageFeatures]]:
    """The tokens of each usable image; the others go to `refused`. An accelerator encodes while threads prepare."""
    on_cpu = next(encoder.parameters()).device.type == "cpu"
    if on_cpu:
        keep_freed_memory()
    turn = nullcontext() if on_cpu else threading.Lock()  # one batch at a time, to save memory

    def encode(batch: list[tuple[str, bytes]]) -> tuple[dict[str, ImageFeatures], dict[str, str]]:
        prepared, bad = {}, {}
        for sha256, data in batch:
            try:
                prepared[sha256] = prepare_image(transform, data, name=sha256[:12])
            except ImageError as error:
                bad[sha256] = error.reason
        if not prepared:
            return {}, bad
        with turn:
            images = _features(encoder, pack_images(transform, list(prepared.values())))
        return dict(zip(prepared, images, strict=True)), bad

    at_once = min(CPU_BATCHES, torch.get_num_threads()) if on_cpu else min(PREPARED, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(at_once)
    try:
        for images, bad in pool.map(encode, _batched(wanted.items(), CPU_BATCH if on_cpu else BATCH)):
            refused.update(bad)
            for sha256, image in images.items():
                stored = image._replace(rows=image.rows.to(dtype))
                if not stored.rows.isfinite().all():
                    largest = f"{encoder.timm_name} gives {image.rows.abs().max():g} for image {sha256[:12]}"
                    raise FeaturesError(f"{largest}, which {dtype} cannot hold; use dtype=torch.float32 or no cache")
                yield sha256, stored
    finally:
        pool.shutdown(cancel_futures=True)


def _features(encoder: VisionEncoder, packed: Mapping[str, Tensor]) -> list[ImageFeatures]:
    """Encoder outputs, on the CPU, of images as `pack_images` gives them."""
    weight = next(encoder.parameters())
    pixel_values = packed["pixel_values"].to(weight)
    if "image_grids" in packed:
        tokens, lengths = encoder.forward_native(pixel_values, packed["image_grids"])
        return _parted({"features": tokens.cpu(), "lengths": lengths.cpu(), "grids": packed["image_grids"]})
    at_once = CPU_BATCH if weight.device.type == "cpu" else BATCH
    tensors = {"features": torch.cat([encoder(some).cpu() for some in pixel_values.split(at_once)])}
    if "tile_ids" in packed:
        tensors |= {"tile_ids": packed["tile_ids"], "lengths": packed["tiles_per_image"]}
    return _parted(tensors)


def _batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
