"""What reports say of the data is what the data say of themselves."""

import json
from dataclasses import replace

import pytest

from arlow_vl.data.shards import scan_shards
from arlow_vl.evaluation.provenance import NOT_STATED, describe_sources, summarise_folders
from tests.tiny_runs import SAMPLES


@pytest.fixture
def samples(tmp_path):
    """Three samples without fields, in a folder of their own."""
    found = scan_shards(sorted((SAMPLES / "captions").glob("train-*.tar"))).samples[:3]
    (tmp_path / "photographs").mkdir()
    return [replace(sample, shard=tmp_path / "photographs" / "train-000000.tar", fields={}) for sample in found]


def write_index(samples, text: str) -> None:
    samples[0].shard.with_name("index.json").write_text(text)


def test_samples_name_their_sources_and_licences():
    samples = scan_shards(sorted((SAMPLES / "captions").glob("*.tar"))).samples
    rows = describe_sources({"captions": samples, "questions": samples[:1]})
    expected = sorted({(sample.fields["source"], sample.fields["license"]) for sample in samples})
    assert [(row["name"], row["license"]) for row in rows] == expected
    assert sum("questions (1 image)" in row["use"] for row in rows) == 1


def test_data_that_say_nothing_are_named_by_their_folder(samples):
    assert describe_sources({"captions": samples}) == [
        {"name": "photographs", "license": NOT_STATED, "use": "captions (3 images)"}
    ]
    assert summarise_folders([samples[0].shard.parent]) == ""


def test_an_index_speaks_for_a_whole_folder(samples):
    note = {"source": "our camera", "license": "CC0", "summary": "Photographs of birds."}
    write_index(samples, json.dumps({"train-000000.tar": {"samples": 3}} | note))
    assert describe_sources({"captions": samples}) == [
        {"name": "our camera", "license": "CC0", "use": "captions (3 images)"}
    ]
    assert summarise_folders([samples[0].shard.parent] * 2) == "Photographs of birds."


def test_a_samples_own_licence_counts_before_the_folders(samples):
    write_index(samples, json.dumps({"source": "our camera", "license": "CC0"}))
    samples[0] = replace(samples[0], fields={"license": "CC-BY-4.0", "source": 7})
    assert [(row["name"], row["license"]) for row in describe_sources({"captions": samples})] == [
        ("our camera", "CC-BY-4.0"),
        ("our camera", "CC0"),
    ]


@pytest.mark.parametrize("index", ["", "[]", "{", '{"summary": 3, "license": null}'])
def test_an_index_that_says_nothing_readable_is_as_none(samples, index):
    write_index(samples, index)
    assert describe_sources({"captions": samples})[0]["license"] == NOT_STATED
    assert summarise_folders([samples[0].shard.parent]) == ""
