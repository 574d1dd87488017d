"""Records with messages and images: where the places are, and what is refused."""

import base64
import json
from dataclasses import asdict

import pytest

from arlow_vl.data.formats.messages import read_texts
from tests.data.formats.conftest import turns_of
from tests.outside_data import JPEG


def asks(content, answer="A fox."):
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def test_a_chat_shows_images_in_later_turns_and_keeps_their_order(folder):
    folder.images("a.jpg", "b.jpg")
    messages = [
        {"role": "system", "content": "Be brief."},
        *asks("<image>\nWhat is it?"),
        *asks("And <image> here?", "A dog."),
    ]
    folder.write("chat.jsonl", [{"id": "7", "messages": messages, "images": ["a.jpg", "b.jpg"], "source": "us"}])
    (sample,) = folder.read("chat.jsonl")
    assert turns_of(sample) == [
        [
            ("system", "Be brief."),
            ("user", "[image]What is it?"),
            ("assistant", "A fox."),
            ("user", "And [image] here?"),
            ("assistant", "A dog."),
        ]
    ]
    assert [image.path for image in sample.images] == [str(folder.path / name) for name in ("a.jpg", "b.jpg")]
    assert [image[1:] for image in sample.images] == [(0, len(JPEG), b"")] * 2
    assert (sample.key, sample.fields) == ("chat.jsonl: line 1", {"id": "7", "source": "us"})
    assert (sample.texts[0].task, folder.source.format) == ("conversation", "conversations")


def numbered(*indexes) -> list[dict]:
    return [{"type": "image", "index": index} for index in indexes]


def test_a_part_with_an_index_shows_that_image_of_the_list(folder):
    folder.images("a.jpg", "b.jpg", "c.jpg")
    messages = [*asks([*numbered(2, None), {"type": "text", "text": "What?"}]), *asks(numbered(1), "A dog.")]
    folder.write("chat.jsonl", [{"messages": messages, "images": ["a.jpg", "b.jpg", "c.jpg"]}])
    (sample,) = folder.read("chat.jsonl")
    assert [image.path[-5:] for image in sample.images] == ["c.jpg", "a.jpg", "b.jpg"]
    assert sample.texts[0].messages[2]["content"] == [{"type": "image"}]


@pytest.mark.parametrize("indexes", [(0, 0), (1, 2), (0, -1), (0, "1"), (0, True), (1, 1.0)])
def test_an_index_that_is_no_image_of_the_list_is_refused(folder, indexes):
    folder.images("a.jpg", "b.jpg")
    folder.write("chat.jsonl", [{"messages": asks(numbered(*indexes)), "images": ["a.jpg", "b.jpg"]}])
    assert (folder.read("chat.jsonl"), folder.skipped) == ([], {"bad_image_index": 1})


def test_a_tars_images_keep_their_order_whatever_an_index_says():
    usable, bad = read_texts({"messages": asks(numbered(1, 0)), "texts": [{"messages": asks(numbered(0, 1))}]}, 2)
    assert len(usable) == 1
    assert [(one.number, str(one.fault), one.task) for one in bad] == [(0, "image_of_its_own", "conversation")]


# What a record holds and what a user's turn becomes, or the reason for which it is left out.
TURNS = {
    "a place in a string": ({"messages": asks("<image>What?"), "images": ["a.jpg"]}, "[image]What?"),
    "no place at all, as trl has it": ({"messages": asks("What?"), "images": ["a.jpg"]}, "[image]What?"),
    "an image as one path": ({"messages": asks("<image>What?"), "image": "a.jpg"}, "[image]What?"),
    "the word behind the places": (
        {"messages": asks("<image>What is <image>?"), "images": ["a.jpg"]},
        "[image]What is <image>?",
    ),
    "the word without images": ({"messages": asks("How do I write <image>?")}, "How do I write <image>?"),
    "parts without a source": (
        {"messages": asks([{"type": "image"}, {"type": "text", "text": "Is <image> it?"}]), "images": ["a.jpg"]},
        "[image]Is <image> it?",
    ),
    "OpenAI's parts": (
        {"messages": asks([{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "a.jpg"}}])},
        "See[image]",
    ),
    "a part with a path": ({"messages": asks([{"type": "image", "image": "a.jpg", "text": None}])}, "[image]"),
    "parts of text alone": (
        {"messages": asks([{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}])},
        "Hi you",
    ),
    "the Cauldron": ({"texts": [{"user": "What?", "assistant": "A fox."}], "images": ["a.jpg"]}, "[image]What?"),
    "LLaVA": (
        {
            "image": "a.jpg",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}],
        },
        "[image]What?",
    ),
    "an answer about the word": (
        {"messages": asks("<image>What?", "Write <image>."), "images": ["a.jpg"]},
        "[image]What?",
    ),
    "too few places": ({"messages": asks("<image>What?"), "images": ["a.jpg", "a.jpg"]}, "image_without_place"),
    "too few images": (
        {"messages": asks([{"type": "image"}, {"type": "image"}]), "images": ["a.jpg"]},
        "place_without_image",
    ),
    "LLaVA's place without an image": (
        {"conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A."}]},
        "place_without_image",
    ),
    "LLaVA's image without a place": (
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A."}]},
        "image_without_place",
    ),
    "an image in an answer": (
        {"messages": [*asks("a", [{"type": "image", "path": "a.jpg"}])]},
        "image_outside_user_turn",
    ),
    "a video": ({"messages": asks("<video>What?"), "videos": ["a.mp4"]}, "media_not_read"),
    "a sound beside an image": (
        {"messages": asks("What?"), "images": ["a.jpg"], "audios": ["a.wav"]},
        "media_not_read",
    ),
    "a call of a tool": (
        {"messages": [asks("a")[0], {"role": "assistant", "content": "b", "tool_calls": [{"id": "1"}]}]},
        "tool_calls_not_read",
    ),
    "an answer not to train on": (
        {"messages": [asks("a")[0], {"role": "assistant", "content": "b", "weight": 0}]},
        "turn_without_weight",
    ),
    "the assistant first": ({"messages": [{"role": "assistant", "content": "Hi"}]}, "starts_with_assistant"),
    "the system alone": ({"messages": [{"role": "system", "content": "Hi"}]}, "no_answer"),
    "the system later": (
        {"messages": [*asks("a"), {"role": "system", "content": "b"}]},
        "system_not_first",
    ),
    "no answer": ({"messages": asks("a")[:1]}, "ends_without_answer"),
    "two questions": ({"messages": [*asks("a")[:1], *asks("b")]}, "roles_do_not_alternate"),
    "an unknown role": ({"messages": [{"role": "narrator", "content": "a"}]}, "unknown_role"),
    "a role that is a list": ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown_role"),
    "no messages": ({"messages": []}, "empty_messages"),
    "messages that are text": ({"messages": "hello"}, "messages_not_a_list"),
    "a message that is text": ({"messages": ["hello"]}, "message_not_an_object"),
    "an empty answer": ({"messages": asks("a", " ")}, "empty_content"),
    "an answer that is a number": ({"messages": asks("a", 3)}, "content_not_text"),
    "an answer that is a list of strings": ({"messages": asks("a", ["fox", "dog"])}, "part_not_an_object"),
    "an answer that is null": ({"messages": asks("a", None)}, "missing_content"),
    "a part of sound": ({"messages": asks([{"type": "audio", "audio": "a.wav"}])}, "unknown_part"),
    "a NUL": ({"messages": asks([{"type": "text", "text": "a\0"}])}, "nul_in_content"),
    "half a surrogate pair": ({"messages": asks("\ud800")}, "lone_surrogate"),
    "an address": ({"messages": asks("<image>"), "images": ["http://x/a.jpg"]}, "image_url_not_fetched"),
    "a pipe": ({"messages": asks("<image>"), "images": ["pipe:touch x"]}, "image_url_not_fetched"),
    "a missing file": ({"messages": asks("<image>"), "images": ["gone.jpg"]}, "missing_image_file"),
    "a folder": ({"messages": asks("<image>"), "images": ["sub"]}, "missing_image_file"),
    "an empty file": ({"messages": asks("<image>"), "images": ["empty.jpg"]}, "image_empty"),
    "a path out of the root": ({"messages": asks("<image>"), "images": ["../a.jpg"]}, "unsafe_image_path"),
    "an absolute path": ({"messages": asks("<image>"), "images": ["/etc/passwd"]}, "unsafe_image_path"),
    "a number for a path": ({"messages": asks("<image>"), "images": [3]}, "image_not_a_path"),
    "a broken data URL": ({"messages": asks("<image>"), "images": ["data:image/png;base64,?"]}, "broken_data_url"),
    "no text": ({"images": ["a.jpg"]}, "missing_text"),
    "no image": ({"question": "What?", "answer": "A fox."}, "missing_image"),
    "a list of answers": ({"image": "a.jpg", "question": "What?", "answer": ["fox", "dog"]}, "answer_not_text"),
}


@pytest.mark.parametrize("kind", TURNS)
def test_a_record_becomes_a_conversation_or_is_left_out_by_reason(folder, kind):
    record, result = TURNS[kind]
    folder.images("a.jpg", "sub/b.jpg").write("empty.jpg", b"")
    folder.write("r.jsonl", [record])
    samples = folder.read("r.jsonl", format="conversations")
    users = [words for sample in samples for role, words in turns_of(sample)[0] if role == "user"]
    assert users == [result] or folder.skipped == {result: 1}


def test_answers_that_spell_a_place_stay_text(folder):
    folder.images("a.jpg").write("r.jsonl", [TURNS["an answer about the word"][0]])
    assert turns_of(folder.read("r.jsonl")[0])[0][-1] == ("assistant", "Write <image>.")


def test_images_inside_a_record_are_bytes(folder):
    url = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "image", "base64": url.partition(",")[2]}]
    folder.write("r.json", [{"messages": asks(parts)}])
    assert folder.read("r.json")[0].images == (JPEG, JPEG)


def test_an_absolute_path_and_a_dotted_one_are_taken_inside_the_root(folder):
    folder.images("sub/a.jpg")
    paths = [str(folder.path / "sub/a.jpg"), "sub/../sub/a.jpg", (folder.path / "sub/a.jpg").as_uri()]
    folder.write("r.jsonl", [{"messages": asks("<image>What?"), "images": [path]} for path in paths])
    assert {sample.images[0].path for sample in folder.read("r.jsonl")} == {str(folder.path / "sub/a.jpg")}
    assert folder.source.tally.samples == 3


def test_images_may_lie_under_another_root(folder):
    folder.images("pictures/a.jpg").write("r.jsonl", [{"image": "a.jpg", "question": "What?", "answer": "A fox."}])
    (sample,) = folder.read("r.jsonl", images=folder.path / "pictures")
    assert (turns_of(sample), sample.texts[0].task) == (
        [[("user", "[image]What?"), ("assistant", "A fox.")]],
        "question",
    )


def test_a_question_with_several_peoples_answers_has_them_as_references_and_its_kind(folder):
    record = {"image": "a.jpg", "question": "What?", "answers": ["a fox", "fox", "a fox"], "kind": "animal"}
    folder.images("a.jpg").write("r.jsonl", [record])
    (sample,) = folder.read()
    assert sample.texts[0].references == ("a fox", "fox", "a fox")
    assert (sample.texts[0].kind, sample.texts[0].messages[-1]["content"]) == ("animal", "a fox")


def test_lines_that_are_no_objects_are_named(folder):
    folder.write("r.jsonl", b'{"messages": 3}\n\n[]\n{\n\xff\n')
    assert folder.read("r.jsonl", format="conversations") == []
    assert [(bad.name, bad.reason) for bad in folder.source.tally.bad] == [
        ("r.jsonl: line 1", "messages_not_a_list"),
        ("r.jsonl: line 3", "bad_json"),
        ("r.jsonl: line 4", "bad_json"),
        ("r.jsonl: line 5", "not_utf8"),
    ]


@pytest.mark.parametrize("kind", TURNS)
def test_a_text_written_into_a_tars_json_is_read_as_the_same_text(folder, kind):
    folder.images("a.jpg", "sub/b.jpg").write("empty.jpg", b"")
    folder.write("r.jsonl", [TURNS[kind][0]])
    for sample in folder.read("r.jsonl", format="conversations"):
        number = len(sample.images)
        entries = json.loads(json.dumps([asdict(text) for text in sample.texts]))
        entries = [{name: value for name, value in entry.items() if value} for entry in entries]
        assert read_texts({"texts": entries}, number) == (list(sample.texts), [])


@pytest.mark.parametrize(
    "fields", [{"images": [], "image": "f.png"}, {"file_name": "f.png"}, {"images": None, "image_path": "f.png"}]
)
def test_a_conversation_has_the_image_that_any_field_names(folder, fields):
    folder.images("f.png").write("a.jsonl", [{**fields, "messages": asks("What?")}])
    (sample,) = folder.read("a.jsonl")
    assert turns_of(sample)[0][0] == ("user", "[image]What?")


def test_the_path_of_a_conversation_is_not_taken_for_an_image(folder):
    folder.write("a.jsonl", [{"path": "docs/a.md", "messages": asks("What?")}])
    (sample,) = folder.read("a.jsonl")
    assert sample.images == ()


def test_a_place_that_only_an_answer_of_llava_spells_is_none(folder):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "An <image>."}]
    folder.images("f.png").write("a.jsonl", [{"image": "f.png", "conversations": turns}])
    assert folder.read("a.jsonl") == []
    assert folder.skipped == {"image_without_place": 1}


def test_images_by_name_beside_a_text_are_records_and_no_table(folder):
    folder.images("f.png").write("a.jsonl", [{"images": ["f.png"], "text": "A fox."}])
    (sample,) = folder.read("a.jsonl")
    assert (len(sample.images), sample.texts[0].task) == (1, "caption")


def test_an_odd_file_url_costs_its_own_line(folder):
    folder.images("f.png")
    lines = [{"image": f"file://{path}", "messages": asks("What?")} for path in ("img[1].jpg", f"{folder.path}/f.png")]
    folder.write("a.jsonl", lines)
    assert len(folder.read("a.jsonl")) == 1
    assert folder.skipped == {"image_url_not_fetched": 1}
