"""COCO captions: several captions of one image are texts of one sample."""

import pytest

from arlow_vl.errors import DataError
from tests.data.formats.conftest import turns_of

IMAGES = [{"id": 9, "file_name": "a.jpg"}, {"id": 4, "file_name": "b.jpg"}]


def caption(number, image_id, text):
    return {"id": number, "image_id": image_id, "caption": text}


def test_five_captions_of_an_image_are_one_sample(folder):
    folder.images("a.jpg", "b.jpg")
    annotations = [caption(n, 9 if n % 2 else 4, f"caption {n}") for n in range(5)]
    folder.write("captions.json", {"info": {}, "images": IMAGES, "annotations": annotations})
    first, second = folder.read("captions.json")
    assert (first.key, second.key, folder.source.format) == ("9", "4", "coco")
    assert [text[-1][1] for text in turns_of(first)] == ["caption 1", "caption 3"]
    assert [text[-1][1] for text in turns_of(second)] == ["caption 0", "caption 2", "caption 4"]
    assert {text.task for text in first.texts} == {"caption"}
    assert first.fields == {"file_name": "a.jpg"}


def test_every_annotation_is_used_or_left_out_by_reason(folder):
    folder.images("a.jpg")
    annotations = [
        caption(1, 9, "good"),
        caption(1, 9, "the same id"),
        caption(2, 9, " "),
        caption(3, 9, ["a", "list"]),
        caption(4, 9, None),
        caption(5, 77, "of no image"),
        {"caption": "of nothing"},
        "text",
        caption(6, 4, "of a missing file"),
        caption(7, 4, "another"),
    ]
    images = [*IMAGES, {"id": 9, "file_name": "c.jpg"}, {"id": 5, "file_name": "a.jpg"}, 3]
    folder.write("captions.json", {"images": images, "annotations": annotations})
    (sample,) = folder.read("captions.json")
    assert turns_of(sample) == [[("user", "[image]"), ("assistant", "good")]]
    assert folder.skipped == {"missing_image_file": 1, "duplicate_id": 1, "missing_text": 1, "entry_not_an_object": 1}
    assert folder.texts_skipped == {
        "duplicate_id": 1,
        "empty_caption": 1,
        "caption_not_text": 1,
        "missing_caption": 1,
        "unknown_image_id": 1,
        "missing_image_id": 1,
        "entry_not_an_object": 1,
    }
    tally = folder.source.tally
    assert tally.texts + len(tally.bad_texts) + sum(bad.members for bad in tally.bad) == len(annotations)


def test_missing_images_are_listed_counted_and_limited(folder):
    folder.images("a.jpg")
    folder.write("c.json", {"images": IMAGES, "annotations": [caption(1, 9, "x"), caption(2, 4, "y")]})
    folder.read("c.json")
    sentence = (
        r"1 of 2 samples is unusable, the limit is 10%: missing_image_file 1 \(as c\.json: image 4: no file .*b\.jpg\)"
    )
    with pytest.raises(DataError, match=sentence):
        folder.source.tally.check("c.json")
    folder.source.tally.check("c.json", 0.5)


@pytest.mark.parametrize("content", ["{", "[]", '{"images": 3}', '{"images": [], "annotations": {}}', "[" * 9000])
def test_a_file_that_is_no_annotation_file_is_one_sentence(folder, content):
    folder.write("c.json", content)
    with pytest.raises(DataError, match=r"c\.json: no (JSON in UTF-8|list under)"):
        folder.read("c.json", format="coco")


def test_reading_again_gives_the_same_samples_and_counts(folder):
    folder.images("a.jpg").write("c.json", {"images": IMAGES, "annotations": [caption(1, 9, "x")]})
    samples = folder.read("c.json")
    assert list(folder.source.iterate()) == samples
    assert folder.source.tally.samples == 1


def test_boxes_beside_captions_are_refused_before_the_captions_are_read(folder):
    folder.images("a.jpg").write("captions_train.json", {"images": IMAGES, "annotations": [caption(1, 9, "x")]})
    folder.write(
        "instances_train.json", {"images": IMAGES, "annotations": [{"id": 1, "image_id": 9, "bbox": [1, 2, 3, 4]}]}
    )
    with pytest.raises(DataError, match=r"instances_train\.json: annotations of boxes, no captions; name captions_\*"):
        folder.read("")
    assert folder.source.tally.samples == 0
    assert len(folder.read("captions_*.json", images=folder.path)) == 1
