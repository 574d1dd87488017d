"""What reports say of the data is what the data say of themselves."""

import json

import pytest

from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.samples import ImageRef, Sample
from arlow_vl.evaluation.provenance import NOT_STATED, describe_sources
from tests.tiny_runs import SAMPLES


def sample(folder, number=0, **fields):
    return Sample(f"{number}", (ImageRef(str(folder / "train-000000.tar"), 0, 1),), (), fields)


@pytest.fixture
def photographs(tmp_path):
    (tmp_path / "photographs").mkdir()
    return tmp_path / "photographs"


def test_samples_name_their_sources_and_licences():
    indexed = IndexedSamples(indexes_of(str(SAMPLES / "captions" / "*.tar")))
    samples = [indexed.sample(number) for number in range(len(indexed))]
    rows, _ = describe_sources(samples)
    expected = sorted({(one.fields["source"], one.fields["license"]) for one in samples})
    assert [(row["name"], row["license"]) for row in rows] == expected
    assert sum(int(row["use"].split()[0]) for row in rows) == len(samples)


def test_data_that_say_nothing_are_named_by_their_folder(photographs):
    rows = [{"name": "photographs", "license": NOT_STATED, "use": "3 images"}]
    assert describe_sources([sample(photographs, number) for number in range(3)]) == (rows, "")


def test_an_index_speaks_for_a_whole_folder(photographs):
    note = {"source": "our camera", "license": "CC0", "summary": "Photographs of birds."}
    (photographs / "index.json").write_text(json.dumps({"train-000000.tar": {"samples": 3}} | note))
    rows, summary = describe_sources([sample(photographs), sample(photographs, 1)])
    assert rows == [{"name": "our camera", "license": "CC0", "use": "2 images"}]
    assert summary == "Photographs of birds."


def test_a_samples_own_licence_counts_before_the_folders(photographs):
    (photographs / "index.json").write_text(json.dumps({"source": "our camera", "license": "CC0"}))
    rows, _ = describe_sources([sample(photographs, license="CC-BY-4.0", source=7), sample(photographs, 1)])
    assert [(row["name"], row["license"]) for row in rows] == [("our camera", "CC-BY-4.0"), ("our camera", "CC0")]


def test_an_image_inside_its_record_has_no_folder():
    rows, summary = describe_sources([Sample("a", (b"bytes",), ())])
    assert (rows[0]["name"], summary) == (NOT_STATED, "")


@pytest.mark.parametrize("index", ["", "[]", "{", '{"summary": 3, "license": null}'])
def test_an_index_that_says_nothing_readable_is_as_none(photographs, index):
    (photographs / "index.json").write_text(index)
    rows, summary = describe_sources([sample(photographs)])
    assert (rows[0]["license"], summary) == (NOT_STATED, "")
