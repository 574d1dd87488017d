"""A frozen encoder's patch tokens, computed once and kept on disk."""

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vision.encoder import VisionEncoder
from vision.image_processing import PictureError, PictureTransform

logger = logging.getLogger(__name__)

CHUNK = 256
"""Pictures a file: a fill that is cut loses at most so many."""
BATCH, CPU_BATCH = 64, 4
"""Pictures the encoder takes at once. On a CPU more leave the processor's cache: by 4, EfficientNet-Lite0 encodes 1.5
times as many pictures a second as by 16."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
STALE_SECONDS = 3600
"""Age at which a chunk half written is the remains of a process that was killed."""


class FeaturesError(ValueError):
    """Features that were asked for are not in the cache, or cannot be kept in it."""

    exit_code = 3


def encoder_fingerprint(encoder: VisionEncoder, transform: PictureTransform) -> str:
    """SHA-256 of all that decides a picture's tokens: the net, its weights, the blocks read, the preprocessing."""
    facts = [encoder.timm_name, encoder.blocks, transform.to_dict(), *(["prefix_tokens"] * encoder.prefix_tokens)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FeatureCache:
    """Patch tokens, keyed by the SHA-256 of a picture's bytes, in chunks of pictures under `folder`.

    Another encoder, preprocessing or dtype has a folder of its own. A chunk is written whole or not at all, so that a
    fill that was cut goes on; `fill` computes a damaged chunk anew. Several processes may fill one cache at once: a
    chunk is named after its pictures, so that no two overwrite each other's but with the same tokens, and each process
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
        self.places: dict[str, tuple[Tensor, int]] = {}  # a chunk, mapped into memory, and the row in it
        self.damaged: dict[Path, str] = {}
        self._seen: set[Path] = set()
        self._open_chunks()

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self.places

    def get(self, sha256s: Sequence[str]) -> Float[Tensor, "pictures patches features"]:
        """Tokens in float32.

        Raises:
            FeaturesError: a picture is not in the cache.
        """
        if absent := [sha256 for sha256 in sha256s if sha256 not in self.places]:
            reasons = [f"{path.name} {reason}" for path, reason in self.damaged.items()]
            others = {path.parent.name for path in self.folder.parent.glob("*/chunk-*")} - {self.folder.name}
            if others:
                reasons.append(
                    f"beside it are features of other encoders, preprocessings or dtypes: {', '.join(sorted(others))}"
                )
            what = f"{len(absent)} of {len(sha256s)} pictures ({absent[0][:12]} first) are not in {self.folder}"
            raise FeaturesError("; ".join([what, *reasons, "fill the cache with this encoder"]))
        rows = [chunk[row] for chunk, row in (self.places[sha256] for sha256 in sha256s)]
        return torch.stack(rows).float()

    def fill(
        self,
        pictures: Iterable[tuple[str, bytes]],
        encoder: VisionEncoder,
        transform: PictureTransform,
        *,
        count: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, str]:
        """Computes what is missing of `count` pictures, given as (SHA-256, bytes).

        Args:
            on_progress: Called with the number of pictures done and with `count`.

        Returns:
            The pictures that cannot be used, and why.

        Raises:
            OSError: the disk has no room for the features (ENOSPC), before any is computed.
            FeaturesError: the encoder is another one, or its features do not fit the dtype.
            ValueError: the encoder is being trained.
        """
        if not encoder.is_frozen:
            raise ValueError("features of an encoder that is being trained cannot be cached; freeze it or do not cache")
        if transform.max_tiles > 1 or transform.max_patches:
            raise ValueError("features of tiles and of native resolution are not cached; leave the cache or them away")
        if encoder_fingerprint(encoder, transform) != self.fingerprint:
            raise FeaturesError(
                f"{self.folder} is for another encoder or preprocessing than {encoder.timm_name} as given"
            )
        self._check_room(encoder, count)
        for path, reason in self.damaged.items():
            logger.warning(f"{path} {reason}: its pictures are encoded again")
            path.unlink(missing_ok=True)
            self._seen.discard(path)
        self.damaged.clear()
        self._remove_remains()

        refused: dict[str, str] = {}
        done = 0
        for group in _batched(pictures, CHUNK):
            self._open_chunks()
            wanted = {sha256: data for sha256, data in group if sha256 not in self.places}
            tokens = dict(_encode(wanted, encoder, transform, refused, self.dtype))
            if tokens:
                self._write(tokens)
            done += len(group)
            if on_progress:
                on_progress(done, count)
        return refused

    def _write(self, tokens: dict[str, Tensor]) -> None:
        path = self.folder / f"chunk-{hashlib.sha256(''.join(tokens).encode()).hexdigest()[:16]}.safetensors"
        metadata = {"fingerprint": self.fingerprint, "pictures": json.dumps(list(tokens))}
        partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as file:
                file.write(save({"features": torch.stack(list(tokens.values()))}, metadata))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._open(path)

    def _open_chunks(self) -> None:
        for path in sorted({*self.folder.glob("chunk-*.safetensors")} - self._seen):
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                metadata, features = file.metadata() or {}, file.get_tensor("features")
        except FileNotFoundError:  # another process found it damaged
            return
        except SafetensorError as error:
            self.damaged[path] = f"is damaged ({error})"
            return
        finally:
            self._seen.add(path)
        if metadata.get("fingerprint") != self.fingerprint:
            self.damaged[path] = f"is of another encoder (fingerprint {metadata.get('fingerprint')})"
        elif features.dtype != self.dtype:
            self.damaged[path] = f"holds {features.dtype}, not {self.dtype}"
        else:
            self.places |= {sha256: (features, row) for row, sha256 in enumerate(json.loads(metadata["pictures"]))}

    def _remove_remains(self) -> None:
        """Of processes that were killed while they wrote; those that live write within seconds."""
        for path in self.folder.glob("chunk-*.partial"):
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _check_room(self, encoder: VisionEncoder, count: int) -> None:
        needed = max(count - len(self.places), 0) * encoder.num_patches * encoder.embed_dim * self.dtype.itemsize
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            room = f"features of {count:,} pictures need {needed:,} bytes in {self.folder}, {free:,} are free"
            raise OSError(errno.ENOSPC, f"{room}; make room or name another folder")


def _encode(
    wanted: dict[str, bytes],
    encoder: VisionEncoder,
    transform: PictureTransform,
    refused: dict[str, str],
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    """The tokens of each usable picture; the others go to `refused`."""
    weight = next(encoder.parameters())
    for batch in _batched(wanted.items(), CPU_BATCH if weight.device.type == "cpu" else BATCH):
        pixels: dict[str, Tensor] = {}
        for sha256, data in batch:
            try:
                pixels[sha256] = transform.from_bytes(data, name=sha256[:12])
            except PictureError as error:
                refused[sha256] = error.reason
        if not pixels:
            continue
        features = encoder(torch.stack(list(pixels.values())).to(weight)).cpu()
        for sha256, tokens in zip(pixels, features, strict=True):
            stored = tokens.to(dtype)
            if not stored.isfinite().all():
                largest = f"{encoder.timm_name} gives {tokens.abs().max():g} for picture {sha256[:12]}"
                raise FeaturesError(f"{largest}, which {dtype} cannot hold; use dtype=torch.float32 or no cache")
            yield sha256, stored


def _batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
