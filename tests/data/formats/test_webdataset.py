"""Tars as sources of samples: captions, questions, conversations, documents, several images of a sample."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data.formats.detect import open_source
from tests.data.formats.conftest import turns_of
from tests.outside_data import JPEG, samples, tar_of, write_index


def as_json(value) -> bytes:
    return json.dumps(value).encode()


def chat(*places):
    content = [*({"type": "image"} for _ in places), {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "A fox."}]


def reads(folder, *members):
    folder.write("a.tar", tar_of(*members))
    return folder.read("a.tar")


def image_bytes(sample) -> list[bytes]:
    found = []
    for image in sample.images:
        with open(image.path, "rb") as file:
            file.seek(image.offset)
            found.append(file.read(image.size))
    return found


def test_a_caption_and_each_question_are_texts_of_one_sample(folder):
    questions = [{"question": "Red?", "answer": "yes", "kind": "yes/no"}, {"question": "?", "answer": ["a"]}]
    (sample,) = reads(folder, *samples("x/0"), ("x/0.json", as_json({"questions": questions, "source": "us"})))
    assert turns_of(sample) == [
        [("user", "[image]"), ("assistant", "caption x/0")],
        [("user", "[image]Red?"), ("assistant", "yes")],
    ]
    assert [(text.task, text.kind) for text in sample.texts] == [("caption", ""), ("question", "yes/no")]
    assert (sample.key, sample.fields, image_bytes(sample)) == ("a.tar:x/0", {"source": "us"}, [JPEG])
    assert folder.texts_skipped == {"answer_not_text": 1}


def test_img2datasets_tars_are_read(folder):
    fields = {"caption": "a cat", "url": "http://x/a.jpg", "key": "000000000", "status": "success", "exif": "{}"}
    (sample,) = reads(folder, ("000000000.jpg", JPEG), ("000000000.txt", b"a cat"), ("000000000.json", as_json(fields)))
    assert (turns_of(sample)[0][1], sample.fields["url"]) == (("assistant", "a cat"), "http://x/a.jpg")


def test_questions_do_without_a_caption(folder):
    questions = {"questions": [{"question": "Red?", "answer": "yes"}]}
    (sample,) = reads(folder, ("a.jpg", JPEG), ("a.json", as_json(questions)))
    assert turns_of(sample) == [[("user", "[image]Red?"), ("assistant", "yes")]]


def test_numbered_images_are_those_of_a_conversation_in_their_order(folder):
    images = [(f"k.{n}.jpg", bytes([n]) * (n + 1)) for n in range(12)]
    members = [*images[::-1], ("k.json", as_json({"messages": chat(*images)})), *samples("other")]
    sample, other = sorted(reads(folder, *members), key=lambda sample: sample.key)
    assert image_bytes(sample) == [data for _, data in images]
    assert turns_of(sample) == [[("user", "[image]" * 12 + "What?"), ("assistant", "A fox.")]]
    assert (other.key, folder.skipped, dict(folder.source.tally.ignored)) == ("a.tar:other", {}, {})


def test_texts_of_every_kind_share_the_images(folder):
    document = [{"type": "text", "text": "See "}, {"type": "image"}, {"type": "text", "text": "."}]
    fields = {
        "texts": [
            {"messages": chat(1), "references": ["fox", "", "a fox"], "kind": "other", "task": "question"},
            {"document": document},
            {"messages": chat(1, 2)},
            {"messages": chat(1), "references": [3]},
            {"messages": chat(1), "references": [""]},
            {"messages": chat(1), "task": "document"},
            {"messages": chat(1), "kind": 3},
            [],
        ],
        "caption": "A fox.",
    }
    (sample,) = reads(folder, ("k.jpg", JPEG), ("k.json", as_json(fields)))
    assert [(text.task, text.references, text.kind) for text in sample.texts] == [
        ("caption", (), ""),
        ("question", ("fox", "", "a fox"), "other"),
        ("document", (), ""),
    ]
    assert sample.texts[2].document == tuple(document)
    assert folder.texts_skipped == {
        "place_without_image": 1,
        "reference_not_text": 1,
        "empty_reference": 1,
        "unknown_task": 1,
        "bad_question_kind": 1,
        "text_not_an_object": 1,
    }


# Members beside one whole sample, and how many samples more there are or the reason for none.
MEMBERS = {
    "a mask beside an image": ([("0.1.mask.png", JPEG), ("0.mask.png", JPEG)], {}, {".1.mask.png": 1, ".mask.png": 1}),
    "a numbered image beside an image": ([("0.1.png", JPEG)], {}, {".1.png": 1}),
    "numbered images with a caption": (
        [("k.0.jpg", JPEG), ("k.1.jpg", JPEG), ("k.txt", b"x")],
        {"missing_image": 1, "dot_in_key": 2},
        {},
    ),
    "numbers with a gap": (
        [("k.0.jpg", JPEG), ("k.2.jpg", JPEG), ("k.json", as_json({"messages": chat(1, 2)}))],
        {"images_not_counted_from_0": 1},
        {},
    ),
    "a number twice": (
        [("k.0.jpg", JPEG), ("k.0.png", JPEG), ("k.json", as_json({"messages": chat(1, 2)}))],
        {"images_not_counted_from_0": 1},
        {},
    ),
    "more images than places": (
        [("k.0.jpg", JPEG), ("k.1.jpg", JPEG), ("k.json", as_json({"messages": chat(1)}))],
        {"image_without_place": 1},
        {},
    ),
    "fewer images than places": (
        [("k.jpg", JPEG), ("k.json", as_json({"messages": chat(1, 2)}))],
        {"place_without_image": 1},
        {},
    ),
    "a path in a tar": (
        [("k.json", as_json({"messages": chat()[1:], "x": 1}))],
        {"starts_with_assistant": 1},
        {},
    ),
    "an image of its own": (
        [
            ("k.jpg", JPEG),
            (
                "k.json",
                as_json({"messages": [{"role": "user", "content": [{"type": "image", "path": "x"}]}, chat()[1]]}),
            ),
        ],
        {"image_without_place": 1},
        {},
    ),
    "messages that are no list": ([("k.jpg", JPEG), ("k.json", as_json({"messages": "x"}))], {"missing_text": 1}, {}),
    "a foreign field of a known name": ([("0.json", as_json({"document": "doc 7", "texts": 3}))], {}, {}),
    "a text file instead of messages' image": (
        [("k.json", as_json({"caption": "x", "messages": chat()}))],
        {"missing_image": 1},
        {},
    ),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_images_and_places_go_together_or_the_sample_is_left_out(folder, kind):
    members, skipped, ignored = MEMBERS[kind]
    assert [sample.key for sample in reads(folder, *samples("0"), *members)] == ["a.tar:0"]
    assert (folder.skipped, folder.texts_skipped, dict(folder.source.tally.ignored)) == (skipped, {}, ignored)


def test_words_alone_are_a_sample_without_images(folder):
    (sample,) = reads(folder, ("k.json", as_json({"messages": chat(), "document": [{"type": "text", "text": "x"}]})))
    assert (sample.images, [text.task for text in sample.texts]) == ((), ["conversation", "document"])


@settings(max_examples=30)
@given(st.permutations(["k.json", "k.0.jpg", "k.1.PNG", "other.jpg", "other.txt", "k.mask.gif"]))
def test_members_may_lie_in_any_order(tmp_path_factory, names):
    contents = {"k.json": as_json({"messages": chat(1, 2)}), "other.txt": b"x"}
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(tar_of(*((name, contents.get(name, name.encode())) for name in names)))
    source = open_source(path)
    found = {sample.key: image_bytes(sample) for sample in source.iterate()}
    assert found == {"a.tar:k": [b"k.0.jpg", b"k.1.PNG"], "a.tar:other": [b"other.jpg"]}


def test_a_glob_reads_shards_in_order_and_a_cut_one_up_to_its_damage(folder):
    folder.write("b.tar", tar_of(*samples("0", "1"))[:-1024])
    folder.write("a.tar", tar_of(*samples("0")))
    assert [sample.key for sample in folder.read("*.tar")] == ["a.tar:0", "b.tar:0", "b.tar:1"]
    (fault,) = folder.source.tally.faults
    assert "without the end marker" in fault.reason


def test_shards_of_one_name_in_two_folders_keep_their_keys_apart(folder):
    for name in ("x/a.tar", "y/a.tar"):
        folder.write(name, tar_of(*samples("0")))
    assert len(folder.read("*/a.tar")) == 2


def test_an_index_that_counts_more_samples_is_a_fault_that_counts_them(folder):
    write_index(folder.path, samples=9)
    assert len(reads(folder, ("k.jpg", JPEG), ("k.json", as_json({"messages": chat(1)})))) == 1
    (fault,) = folder.source.tally.faults
    assert (fault.missing, folder.skipped) == (8, {})
