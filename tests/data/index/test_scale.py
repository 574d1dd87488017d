"""Opening costs headers, a sample costs the same at every position, and little is resident: also at 10 million."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arlow_vl.data.index.header import file_of, write_header
from arlow_vl.data.index.places import find_index, place_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.samples import Sample
from tests.data.index.made_sources import MadeSource, caption, hashed, indexed, laid

MIB = 2**20


def simulated(folder: Path, shards: int, samples: int) -> list[Path]:
    """Tars with indexes of so many samples each; all but the headers are links to the files of the first."""
    image = hashed(laid(folder, b"image", name="0.tar")[0], b"image")
    source = MadeSource(
        [Sample(f"0.tar:{n:09d}", (image,), (caption(f"a thing of {n} words " * 3),)) for n in range(samples)],
        [folder / "0.tar"],
    )
    first = indexed(folder, source, into=".arlow-index/0.tar", name="0.tar")
    tars = [folder / f"{number}.tar" for number in range(shards)]
    for tar in tars[1:]:
        tar.write_bytes(b"image")
        own = folder / ".arlow-index" / tar.name
        own.mkdir()
        for name in (first.header.records_name, first.header.rows_name):
            os.link(first.folder / name, own / name)
        write_header(own, replace(first.header, source=tar.name, files=(file_of(tar, tar.name),)))
    return tars


def opened(tars: list[Path]) -> IndexedSamples:
    return IndexedSamples([index for tar in tars if (index := find_index(place_of(tar))[0])])


def resident() -> int:
    """Bytes, those of mapped files too."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds_a_sample(samples: IndexedSamples, start: int, number: int = 300) -> float:
    samples.sample(start)
    began = time.process_time()
    for position in range(start, start + number):
        samples.sample(position)
    return (time.process_time() - began) / number


def measure(folder: Path, shards: int, samples_per_shard: int) -> dict[str, float]:
    tars = simulated(folder, shards, samples_per_shard)
    before, began = resident(), time.process_time()
    samples = opened(tars)
    facts = {"open": time.process_time() - began}
    assert len(samples) == shards * samples_per_shard
    for name, start in (("first", 0), ("middle", len(samples) // 2), ("last", len(samples) - 300)):
        facts[name] = seconds_a_sample(samples, start)
        assert samples.key(start).endswith(f"{start % samples_per_shard:09d}")
    rng = np.random.default_rng(0)
    began = time.process_time()
    for position in rng.integers(0, len(samples), 300).tolist():
        samples.sample(position)
    facts["scattered"] = (time.process_time() - began) / 300
    characters = 0
    for start in range(0, len(samples), 4096):
        characters += int(samples.rows(np.arange(start, min(start + 4096, len(samples))))["characters"].sum())
    assert characters == shards * int(samples.indexes[0].lengths.sum())
    return facts | {"resident": resident() - before}


def test_a_sample_costs_the_same_at_every_position(tmp_path):
    facts = measure(tmp_path, shards=30, samples_per_shard=400)
    assert facts["open"] < 0.5
    assert max(facts["middle"], facts["last"]) < 3 * facts["first"] + 1e-4
    assert facts["resident"] < 50 * MIB


@pytest.mark.slow
def test_ten_million_samples_open_in_two_seconds_and_a_gigabyte(tmp_path):
    facts = measure(tmp_path, shards=1000, samples_per_shard=10_000)
    print({name: f"{value:.3g}" for name, value in facts.items()})
    assert facts["open"] < 2
    assert max(facts["middle"], facts["last"]) < 2 * facts["first"]
    assert facts["resident"] < 1024 * MIB
