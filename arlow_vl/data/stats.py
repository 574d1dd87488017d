"""Statistics of a source from its indexes: samples, images, texts, lengths, languages, sizes, what is unusable."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.reading import Index, IndexedSamples
from arlow_vl.data.index.report import faults_of, left_out, texts_left_out
from arlow_vl.data.languages import format_languages, languages_of
from arlow_vl.data.samples import TASKS, Sample
from arlow_vl.data.stratified import stratified_places
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, visible

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
MOST_LOOKED_AT = 10_000
"""Most samples whose words and image headers are read; where there are more, they are spread evenly."""


def stats_of(indexes: Sequence[Index]) -> dict[str, Any]:
    """Returns the statistics that docs/data.md lists, for programs."""
    samples = IndexedSamples(indexes)
    headers = [index.header for index in indexes]
    totals = Counter[str]()
    for header in headers:
        totals.update(header.totals)
    return {
        "samples": len(samples),
        "images": totals["images"],
        "image_bytes": totals["image_bytes"],
        "texts": {task: totals[task] for task in TASKS},
        "characters": totals["characters"],
        "characters_per_sample": _quantiles(_lengths(indexes)),
        "languages": languages_of(_looked_at(samples)),
        "sizes": _sizes(samples),
        "bad": {reason: one.count for reason, one in left_out(headers).items()},
        "bad_texts": {reason: one.count for reason, one in texts_left_out(headers).items()},
        "faults": [{"shard": fault.shard, "reason": fault.reason} for fault in faults_of(indexes)],
        "fingerprint": samples.fingerprint,
    }


def _lengths(indexes: Sequence[Index]) -> np.ndarray:
    lengths = []
    for index in indexes:
        lengths.append(np.array(index.lengths))  # a copy: the index is closed
        index.close()
    return np.concatenate([*lengths, np.zeros(0, np.uint32)])


def _quantiles(values: Any) -> dict[str, float]:
    """Returns quantiles by share, as `{"0.5": 63.0}`; empty where there are no values."""
    values = np.asarray(values)
    return {f"{share:g}": float(np.quantile(values, share)) for share in QUANTILES} if len(values) else {}


def _sizes(samples: IndexedSamples) -> dict[str, Any]:
    """Formats, width and height in pixels as the headers of images say them; no pixel is decoded."""
    from vision.decoding.header import read_header
    from vision.decoding.parts import ImageFault

    formats, unreadable, widths, heights = Counter[str](), Counter[str](), [], []
    for data in _images(samples):
        if data is None:
            unreadable["unreadable"] += 1
            continue
        try:
            header = read_header(data)
        except ImageFault as fault:
            unreadable[fault.reason] += 1
            continue
        formats[header.format] += 1
        widths.append(header.width)
        heights.append(header.height)
    return {
        "images_looked_at": formats.total() + unreadable.total(),
        "formats": dict(formats.most_common()),
        "unreadable": dict(unreadable.most_common()),
        "width": _quantiles(widths),
        "height": _quantiles(heights),
    }


def _looked_at(samples: IndexedSamples) -> Iterator[Sample]:
    return map(samples.sample, stratified_places(len(samples), MOST_LOOKED_AT))


def _images(samples: IndexedSamples) -> Iterator[bytes | None]:
    for sample in _looked_at(samples):
        for image in sample.images:
            try:
                yield read_image(image, sample.key)
            except DataError:
                yield None


def format_stats(stats: dict[str, Any]) -> Iterator[str]:
    """Yields the same as lines for people."""
    texts = ", ".join(f"{count:,} of task {task}" for task, count in stats["texts"].items() if count)
    yield f"samples      {stats['samples']:,}"
    yield f"images       {stats['images']:,}, {stats['image_bytes'] / 2**20:,.1f} MiB"
    yield f"texts        {texts or 'none'}"
    yield f"characters   {stats['characters']:,}; a sample: {_format_quantiles(stats['characters_per_sample'])}"
    looked_at = min(stats["samples"], MOST_LOOKED_AT)
    yield f"languages    {format_languages(stats['languages'])} (of {number_of(looked_at, 'sample')} looked at)"
    sizes = stats["sizes"]
    if sizes["images_looked_at"]:
        formats = ", ".join(f"{name} {count:,}" for name, count in sizes["formats"].items())
        yield f"formats      {formats or 'none'} (of {number_of(sizes['images_looked_at'], 'image')} looked at)"
        yield f"width        {_format_quantiles(sizes['width'])}"
        yield f"height       {_format_quantiles(sizes['height'])}"
    for name, counts in (("unreadable", sizes["unreadable"]), ("bad", stats["bad"]), ("bad texts", stats["bad_texts"])):
        if counts:
            yield f"{name:<12} {', '.join(f'{visible(reason)} {count:,}' for reason, count in counts.items())}"
    for fault in stats["faults"]:
        yield f"fault        {fault['shard']}: {fault['reason']}"
    yield f"fingerprint  {stats['fingerprint']}"


def _format_quantiles(quantiles: dict[str, float]) -> str:
    """`12 to 4,012 (5% up to 20, half up to 63, 95% up to 180)`."""
    if not quantiles:
        return "none"
    least, low, half, high, most = quantiles.values()
    return f"{least:,.0f} to {most:,.0f} (5% up to {low:,.0f}, half up to {half:,.0f}, 95% up to {high:,.0f})"
