"""Parquet, Arrow and saved datasets."""

import itertools
import json

import pytest

from arlow_vl.errors import DataError
from tests.data.formats.conftest import turns_of
from tests.outside_data import JPEG

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

IMAGE = {"bytes": JPEG, "path": None}
CHAT = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A fox."}]


def stream(path, table) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def arrow_file(path, table) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(("name", "write"), [("a.arrow", stream), ("a.arrow", arrow_file), ("a.parquet", None)])
def test_images_come_as_bytes_from_every_kind_of_table(folder, name, write):
    table = pyarrow.table({"image": [IMAGE] * 70, "text": [f"caption {n}" for n in range(70)], "id": list(range(70))})
    path = folder.path / name
    write(path, table) if write else parquet.write_table(table, path, row_group_size=50)
    found = folder.read(name)
    assert [turns_of(sample)[0][1][1] for sample in found] == [f"caption {n}" for n in range(70)]
    assert {sample.images for sample in found} == {(JPEG,)}
    assert (found[69].key, found[69].fields, folder.source.format) == (f"{name}: row 70", {"id": 69}, "parquet")


def test_conversations_with_several_images_and_paths_are_read(folder):
    folder.images("x/b.jpg")
    rows = [{"images": [IMAGE, {"bytes": None, "path": "x/b.jpg"}], "messages": CHAT}, {"images": [], "messages": CHAT}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder.path / "a.parquet")
    first, second = folder.read("a.parquet")
    assert (first.images[0], first.images[1].path) == (JPEG, str(folder.path / "x/b.jpg"))
    assert turns_of(first)[0][0] == ("user", "[image][image]What?")
    assert second.images == ()


def test_rows_that_cannot_be_used_are_counted(folder):
    rows = [
        {"image": JPEG, "caption": "good"},
        {"image": None, "caption": "x"},
        {"image": b"", "caption": "x"},
        {"image": JPEG, "caption": None},
        {"image": JPEG, "caption": " "},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder.path / "a.parquet")
    assert len(folder.read("a.parquet")) == 1
    assert folder.skipped == {"missing_image": 1, "image_empty": 1, "missing_text": 1, "empty_text": 1}


def test_a_saved_dataset_is_a_folder_and_its_files_come_in_its_order(folder):
    for name, text in (("data-00001.arrow", "second"), ("data-00000.arrow", "first")):
        stream(folder.path / name, pyarrow.table({"image": [IMAGE], "text": [text]}))
    folder.write("state.json", {"_data_files": [{"filename": f"data-0000{n}.arrow"} for n in (0, 1)]})
    assert [turns_of(sample)[0][1][1] for sample in folder.read()] == ["first", "second"]


def test_a_saved_dataset_of_several_splits_asks_for_one(folder):
    folder.write("dataset_dict.json", {"splits": ["train", "test"]})
    folder.write("train/state.json", {})
    folder.write("test/state.json", {})
    with pytest.raises(DataError, match="holds the splits test, train; name the folder of one"):
        folder.read()
    with pytest.raises(DataError, match=r"state\.json names no files"):
        folder.read("train")


def test_columns_that_are_not_there_are_one_sentence(folder):
    parquet.write_table(pyarrow.table({"pixels": [1], "words": ["x"]}), folder.path / "a.parquet")
    with pytest.raises(DataError, match=r"no column of texts, which has the columns 'pixels', 'words'; name the texts"):
        folder.read("a.parquet")


def test_two_columns_of_one_name_are_one_sentence(folder):
    columns = [pyarrow.array([IMAGE]), pyarrow.array(["A fox."]), pyarrow.array(["Un renard."])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["image", "text", "text"]), folder.path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: two columns are called 'text'; rename or remove one"):
        folder.read("a.parquet")


@pytest.mark.parametrize("keep", [0, 3, 100, -3])
def test_a_damaged_table_is_a_fault_that_is_named(folder, keep):
    path = folder.path / "a.parquet"
    parquet.write_table(pyarrow.table({"image": [IMAGE] * 3, "text": ["x"] * 3}), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert folder.read("a.parquet") == []
    (fault,) = folder.source.tally.faults
    assert "a.parquet" in fault.shard and fault.reason.startswith("unreadable: ")
    with pytest.raises(DataError, match=r"a\.parquet: no sample can be used: unreadable: "):
        folder.source.tally.check("a.parquet")


COLUMNS = {
    "images as structs": [IMAGE, {"bytes": None, "path": "gone.jpg"}, {"bytes": None, "path": None}, None],
    "images as bytes": [JPEG, b"", None, JPEG],
    "images as paths": ["a.jpg", "", "../a.jpg", "data:,x"],
    "numbers": [1, 2, None, 3],
    "lists": [["a"], [], None, ["b", "c"]],
    "strings": ["a fox", " ", None, "<image>"],
    "chats": [CHAT, CHAT[:1], [], None],
}


@pytest.mark.parametrize(
    ("image", "text", "name"), itertools.product(COLUMNS, COLUMNS, ["text", "messages", "question"])
)
def test_columns_of_any_type_give_samples_or_reasons(folder, image, text, name):
    folder.images("a.jpg")
    table = pyarrow.table({"image": COLUMNS[image], name: COLUMNS[text], "answer": COLUMNS[text][::-1]})
    parquet.write_table(table, folder.path / "a.parquet")
    found = folder.read("a.parquet")
    assert len(found) + sum(folder.skipped.values()) == 4
    json.dumps([[sample.fields, *(entry.messages for entry in sample.texts)] for sample in found])


def test_a_cell_that_cannot_be_read_costs_its_row_and_other_columns_nothing(folder):
    latin = pyarrow.array([b"A fox.", b"caf\xe9", b"A dog."]).cast(pyarrow.binary())
    latin = pyarrow.Array.from_buffers(pyarrow.string(), 3, latin.buffers())
    times = pyarrow.array([1, 2, 3], pyarrow.timestamp("ns")), pyarrow.array([2**62] * 3, pyarrow.timestamp("us"))
    table = pyarrow.table({"image": [IMAGE] * 3, "text": latin, "at": times[0], "until": times[1], "id": [7, 8, 9]})
    parquet.write_table(table, folder.path / "a.parquet")
    found = folder.read("a.parquet")
    assert [sample.key for sample in found] == ["a.parquet: row 1", "a.parquet: row 3"]
    assert [sample.fields for sample in found] == [{"id": 7}, {"id": 9}]
    assert folder.skipped == {"not_utf8": 1}
