"""From tars to packed batches against webdataset and Hugging Face datasets, start and resume at 10 million samples,
memory of a worker, and images against plain Pillow.

Run it with `python -m experiments.benchmarks.data`; some ten minutes on a quiet machine, 3 GB of disk for the time.
The loaders read the same files with the same decoding, tokenizer and collate. A core's speed is samples over CPU
seconds, of all processes of a case: other work on the machine costs wall clock, not these.
"""

import argparse
import importlib.util
import io
import itertools
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config

from arlow_vl.data.collate import SampleCollate
from arlow_vl.data.images import DecodedImages
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.header import write_header
from arlow_vl.data.index.reading import Index, IndexedSamples
from arlow_vl.data.loader import ResumableLoader
from arlow_vl.data.prepare.members import write_tar
from arlow_vl.data.sample_dataset import EncodedSample, SampleDataset, encode_text
from arlow_vl.data.samples import caption_text
from arlow_vl.data.sources import Source
from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer
from experiments.benchmarks.measure import Timings, alternate, machine_line, report, table
from experiments.benchmarks.vision import ENLARGED, LARGE, PHOTO, jpeg, mosaic, repeat, spread
from vision.forms.batches import prepare_image
from vision.transform import ImageTransform

MODEL = "vit_tiny_patch16_224"
SIZES = ((512, 384), (384, 512), (640, 480))
WORDS = "a fox in deep snow looks at the camera while two birds fly over an old red barn near some trees".split()
MAX_LENGTH, BATCH, SEED = 64, 16, 0
GOALS = {"end to end": 1.2, "start, s": 2.0, "images": 2.3}
MIB = 2**20
Batches = Callable[[], Iterable[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Size:
    shards: int
    samples: int
    """Samples of a shard that is read from end to end."""
    simulated_shards: int
    simulated: int
    """Samples of a simulated shard."""
    memory: int
    """Samples that a worker reads while its memory is watched."""
    images: dict[str, tuple[int, int]]


FULL = Size(shards=4, samples=250, simulated_shards=1000, simulated=10_000, memory=100_000, images=LARGE | ENLARGED)
TOY = Size(
    shards=2, samples=16, simulated_shards=3, simulated=40, memory=160, images={"mosaic, 1024 x 768": (1024, 768)}
)


def write_shard(path: Path, images: list[bytes], samples: int, name: str) -> Path:
    def members() -> Iterator[tuple[str, bytes]]:
        for number in range(samples):
            words = (WORDS[(number * 7 + n * 3) % len(WORDS)] for n in range(8 + number % 24))
            yield f"{name}{number:06d}.jpg", images[number % len(images)]
            yield f"{name}{number:06d}.txt", " ".join(words).encode()

    with open(path, "wb") as file:
        write_tar(file, members())
    return path


class Loaders:
    """The same batches' worth of work by each loader, out of the same tars."""

    def __init__(self, files: list[Path], transform: ImageTransform, tokenizer: Any) -> None:
        self.files, self.tokenizer = files, tokenizer
        self.images: Any = DecodedImages(transform)
        self.collate = SampleCollate(self.images, pad_token_id=tokenizer.pad_token_id)
        self.indexes = indexes_of(str(files[0].parent))

    def cases(self) -> dict[str, Batches]:
        cases: dict[str, Batches] = {"Arlow": partial(self.arlow, 0), "Arlow, 1 worker": partial(self.arlow, 1)}
        cases["webdataset"] = self.webdataset
        if importlib.util.find_spec("datasets"):
            cases["datasets"] = self.datasets
        return cases

    def arlow(self, workers: int, indexes: list[Index] | None = None) -> ResumableLoader:
        """Shuffled and resumable; a new data set each time, so that no text is encoded already."""
        samples = IndexedSamples(indexes or self.indexes)
        dataset = SampleDataset(samples, self.tokenizer, self.images, max_length=MAX_LENGTH, one_text=True)
        source = Source(name="captions", dataset=dataset, samples_per_batch=BATCH)
        return ResumableLoader([source], self.collate, seed=SEED, num_batches=len(dataset) // BATCH, workers=workers)

    def webdataset(self) -> Iterator[Mapping[str, Any]]:
        import webdataset

        stream: Any = webdataset.WebDataset([str(file) for file in self.files], shardshuffle=False)
        return self._batches(stream.to_tuple("jpg", "txt"))

    def datasets(self) -> Iterator[Mapping[str, Any]]:
        import datasets  # pyrefly: ignore[missing-import]

        stream = datasets.load_dataset(
            "webdataset", data_files=[str(file) for file in self.files], split="train", streaming=True
        ).cast_column("jpg", datasets.Image(decode=False))
        return self._batches((row["jpg"]["bytes"], row["txt"]) for row in stream)

    def _batches(self, pairs: Iterable[tuple[bytes, bytes | str]]) -> Iterator[Mapping[str, Any]]:
        samples = (self._encoded(*pair) for pair in pairs)
        while len(batch := list(itertools.islice(samples, BATCH))) == BATCH:
            yield self.collate(batch)

    def _encoded(self, image: bytes, caption: bytes | str) -> EncodedSample:
        text = caption_text(caption if isinstance(caption, str) else caption.decode())
        pixels = prepare_image(self.images.transform, image, name="sample")
        return EncodedSample([encode_text(self.tokenizer, text, MAX_LENGTH)], [pixels])


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of those that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure_loaders(loaders: Loaders, rounds: int) -> tuple[dict, list[list[object]]]:
    """Samples over seconds of CPU and of wall clock, the cases in turn."""
    cases = loaders.cases()
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    wall: dict[str, list[float]] = {name: [] for name in cases}
    counts = {}
    for number in range(rounds + 1):
        for name, batches in cases.items():
            began, clock = cpu_seconds(), time.perf_counter()
            counts[name] = sum(batch["num_images"] for batch in batches())
            if number:  # the first round warms up
                cpu[name].append(cpu_seconds() - began)
                wall[name].append(time.perf_counter() - clock)
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"the loaders gave different numbers of samples: {counts}")
    by_cpu, by_wall = Timings(cpu), Timings(wall)
    peers = [name for name in cases if not name.startswith("Arlow")]
    fastest = min(peers, key=by_cpu.median)
    figures, lines = {"samples": counts["Arlow"], "fastest_peer": fastest}, []
    for name in cases:
        speeds = [counts[name] / timings.median(name) for timings in (by_cpu, by_wall)]
        over = by_cpu.speed_over(name, fastest)
        figures[name] = {"per_core": round(speeds[0], 1), "per_second": round(speeds[1], 1), "over_fastest": over}
        goal = f"{GOALS['end to end']:.2f}" if name == "Arlow" else "–"
        lines.append([name, f"{speeds[0]:,.0f}", f"{speeds[1]:,.0f}", spread(over), goal])
    return figures, lines


def simulated_indexes(folder: Path, image: bytes, shards: int, samples: int) -> list[Index]:
    """Indexes of so many tars; all are links to the files of the first but the headers."""
    (first,) = indexes_of(write_shard(folder / "0.tar", [image], samples, "s"))
    for number in range(1, shards):
        tar = folder / f"{number}.tar"
        os.link(folder / "0.tar", tar)
        own = first.folder.with_name(tar.name)
        own.mkdir()
        for name in (first.header.records_name, first.header.rows_name):
            os.link(first.folder / name, own / name)
        files = (first.header.files[0]._replace(name=tar.name),)
        write_header(own, replace(first.header, source=tar.name, files=files))
    return indexes_of(str(folder))


def measure_start(loaders: Loaders, folder: Path, image: bytes, size: Size) -> tuple[dict, list[list[object]]]:
    """CPU seconds from an indexed folder to the first batch, at three positions of a run of one epoch."""
    simulated_indexes(folder, image, size.simulated_shards, size.simulated)
    figures: dict[str, dict] = {}
    for where, share in (("first", 0.0), ("middle", 0.5), ("last", 1.0)):
        before, began = resident("self"), cpu_seconds()
        loader = loaders.arlow(0, indexes_of(str(folder)))
        opened = cpu_seconds() - began
        loader.load_state_dict({"position": int(share * (loader.num_batches - 1)), "fingerprint": loader.fingerprint})
        began = cpu_seconds()
        next(iter(loader))
        figures[where] = {
            "samples": len(loader.sources[0].dataset),
            "open": round(opened, 3),
            "first_batch": round(cpu_seconds() - began, 4),
            "resident_mib": round((resident("self") - before) / MIB, 1),
        }
    return figures, [
        [where, f"{f['samples']:,}", f["open"], f["first_batch"], f["resident_mib"], f"{GOALS['start, s']:g}"]
        for where, f in figures.items()
    ]


def measure_memory(loaders: Loaders, folder: Path, image: bytes, samples: int) -> tuple[dict, list[list[object]]]:
    """Resident bytes of the one worker at tenths of its way."""
    write_shard(folder / "small.tar", [image], samples, "m")
    loader = loaders.arlow(1, indexes_of(str(folder)))
    marks, found = {len(loader) * tenth // 10 for tenth in range(1, 11)}, []
    for number, _ in enumerate(loader, start=1):
        if number in marks:
            (worker,) = multiprocessing.active_children()
            found.append((number * BATCH, round(resident(str(worker.pid)) / MIB, 1)))
    return {"resident_mib": dict(found)}, [[f"{count:,}", mib] for count, mib in found]


def resident(process: str) -> int:
    """Bytes, those of mapped files too."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def plain_pillow(data: bytes, size: int, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Does what most code does: open, RGB, resize, scale, normalise."""
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - mean) / std


def measure_images(files: dict[str, bytes], data_config: dict, rounds: int) -> tuple[dict, list[list[object]]]:
    transform = ImageTransform(data_config)
    mean, std = (torch.tensor(data_config[name]).view(3, 1, 1) for name in ("mean", "std"))
    figures, lines = {}, []
    for name, data in files.items():
        cases = {
            "ours": partial(repeat, 1, partial(prepare_image, transform, data, name=name)),
            "Pillow": partial(plain_pillow, data, data_config["input_size"][-1], mean, std),
        }
        timings = alternate(cases, rounds, warmup=1)
        speed = {case: round(1 / timings.median(case), 1) for case in cases}
        figures[name] = {"images_per_second": speed, "over_pillow": timings.speed_over("ours", "Pillow")}
        goal = f"{GOALS['images']:.2f}"
        lines.append([name, speed["Pillow"], speed["ours"], spread(figures[name]["over_pillow"]), goal])
    return figures, lines


def text_of(size: Size, without: str, parts: Mapping[str, list[list[object]]]) -> str:
    return (
        f"# Data\n\n{machine_line()}\n\n## From tars to packed batches\n\n"
        f"{size.shards * size.samples:,} JPEG with captions in {size.shards} tars, indexed before; decoded to "
        f"224 x 224, tokenised, packed. Arlow shuffles and resumes exactly; the others read in file order.{without}\n\n"
        + table(
            ["loader", "samples/CPU s", "samples/s", "a core over the fastest peer's", "goal for end to end"],
            parts["loaders"],
        )
        + "\n\n## Start and resume\n\nCPU seconds until the loader is there, and until its first batch.\n\n"
        + table(["position", "samples", "open, s", "first batch, s", "MiB", "goal for start, s"], parts["start"])
        + "\n\n## Memory of a worker\n\n"
        + table(["samples read", "resident, MiB"], parts["memory"])
        + "\n\n## Images from bytes to model input\n\nPlain Pillow opens, converts, resizes and normalises.\n\n"
        + table(["JPEG of quality 90", "Pillow, images/s", "ours", "over Pillow", "goal for images"], parts["images"])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="little of everything; nothing is kept")
    arguments = parser.parse_args()
    size = TOY if arguments.toy else FULL
    torch.set_num_threads(1)
    photo = Image.open(PHOTO).convert("RGB")
    data_config = resolve_model_data_config(timm.create_model(MODEL))
    transform, tokenizer = ImageTransform(data_config), train_tokenizer([" ".join(WORDS)] * 20, vocab_size=300)
    small = jpeg(photo.resize((64, 64)))
    figures: dict[str, object] = {}
    lines: dict[str, list[list[object]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folders = {part: Path(name, part) for part in ("loaders", "start", "memory")}
        for folder in folders.values():
            folder.mkdir()
        images = [jpeg(mosaic(photo, pixels)) for pixels in SIZES]
        files = [
            write_shard(folders["loaders"] / f"{n}.tar", images, size.samples, f"{n}-") for n in range(size.shards)
        ]
        loaders = Loaders(files, transform, tokenizer)
        figures["loaders"], lines["loaders"] = measure_loaders(loaders, arguments.rounds)
        figures["start"], lines["start"] = measure_start(loaders, folders["start"], small, size)
        figures["memory"], lines["memory"] = measure_memory(loaders, folders["memory"], small, size.memory)
    large = {
        name: jpeg(mosaic(photo, pixels) if name in LARGE or arguments.toy else photo.resize(pixels))
        for name, pixels in size.images.items()
    }
    figures["images"], lines["images"] = measure_images(large, data_config, arguments.rounds)
    without = "" if importlib.util.find_spec("datasets") else " Hugging Face datasets is not installed and left out."
    report(None if arguments.toy else "data", text_of(size, without, lines), figures)


if __name__ == "__main__":
    main()
