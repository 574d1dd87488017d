"""Karpathy's dataset_coco.json, and the questions of VizWiz and POPE."""

import pytest

from arlow_vl.errors import DataError
from tests.data.formats.conftest import turns_of


def entry(name, split, *sentences, **more):
    facts = {"filepath": "val2014", "filename": name, "split": split, "imgid": 0, "cocoid": 9}
    return facts | {"sentences": [{"raw": text, "tokens": []} for text in sentences]} | more


def test_a_split_is_read_with_all_sentences_of_its_images(folder):
    folder.images("val2014/a.jpg", "val2014/b.jpg", "val2014/c.jpg")
    images = [
        entry("a.jpg", "test", "A fox.", "Snow."),
        entry("b.jpg", "restval", "A dog."),
        entry("c.jpg", "val", "x"),
    ]
    folder.write("dataset_coco.json", {"images": images, "dataset": "coco"})
    (sample,) = folder.read("dataset_coco.json", format="karpathy_test")
    assert sample.key == "val2014/a.jpg"
    assert turns_of(sample) == [
        [("user", "[image]"), ("assistant", "A fox.")],
        [("user", "[image]"), ("assistant", "Snow.")],
    ]
    assert [s.key for s in folder.read("dataset_coco.json", format="karpathy_train")] == ["val2014/b.jpg"]
    assert len(folder.read("dataset_coco.json")) == 3 and folder.source.format == "karpathy"


def test_flickrs_images_have_no_folder(folder):
    folder.images("1.jpg")
    images = [{name: value for name, value in entry("1.jpg", "test", "A fox.").items() if name != "filepath"}]
    folder.write("dataset_flickr30k.json", {"images": images})
    assert [sample.key for sample in folder.read("dataset_flickr30k.json")] == ["1.jpg"]


def test_images_and_sentences_that_cannot_be_used_are_counted(folder):
    folder.images("val2014/a.jpg")
    bad = [
        entry("a.jpg", "test", "again"),
        entry("none.jpg", "test", "x"),
        3,
        entry(None, "test", "x"),
        entry("../../a.jpg", "test", "x"),
    ]
    images = [entry("a.jpg", "test", "A fox.", ""), *bad, entry("train.jpg", "train", "not of this split")]
    folder.write("d.json", {"images": images})
    folder.read("d.json", format="karpathy_test")
    assert folder.skipped == {
        "duplicate_id": 1,
        "missing_image_file": 1,
        "entry_not_an_object": 1,
        "missing_image": 1,
        "unsafe_image_path": 1,
    }
    assert folder.texts_skipped == {"empty_caption": 1}


def test_vizwiz_names_its_images(folder):
    folder.images("VizWiz_val_00000000.jpg", "VizWiz_val_00000001.jpg")
    asked = {
        "image": "VizWiz_val_00000000.jpg",
        "question": "What is it?",
        "answers": [{"answer": "fox", "answer_confidence": "yes"}] * 6
        + [{"answer": "unanswerable", "answer_confidence": "no"}] * 4,
        "answer_type": "other",
        "answerable": 1,
    }
    folder.write("val.json", [asked, asked | {"image": "VizWiz_val_00000001.jpg", "question": None}])
    (sample,) = folder.read("val.json")
    assert folder.source.format == "vizwiz"
    assert turns_of(sample) == [[("user", "[image]What is it?"), ("assistant", "fox")]]
    assert sample.texts[0].references == ("fox",) * 6 + ("unanswerable",) * 4
    assert sample.texts[0].kind == "other"
    assert folder.texts_skipped == {"missing_question": 1}


def test_popes_lines_are_questions_whatever_the_suffix(folder):
    folder.images("COCO_val2014_000000310196.jpg")
    line = '{"question_id": %d, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a fox?", "label": "%s"}\n'
    folder.write("coco_pope_random.json", line % (1, "yes") + line % (2, "no") + line % (2, "no") + "{\n")
    (sample,) = folder.read("coco_pope_random.json")
    assert folder.source.format == "pope"
    assert turns_of(sample) == [
        [("user", "[image]Is there a fox?"), ("assistant", "yes")],
        [("user", "[image]Is there a fox?"), ("assistant", "no")],
    ]
    assert (folder.skipped, folder.texts_skipped) == ({"bad_json": 1}, {"duplicate_id": 1})


def test_a_file_without_the_list_is_named(folder):
    folder.write("val.json", {"data": []})
    with pytest.raises(DataError, match=r"val\.json: no list of questions; name VizWiz's annotation file"):
        folder.read("val.json", format="vizwiz")
