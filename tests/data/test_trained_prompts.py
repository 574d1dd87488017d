"""How training asked is counted from its samples, kept in a folder, and compared with how a task asks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.trained_prompts import LOOKED_AT, TrainedPrompts, prompts_of, read_trained_prompts
from arlow_vl.errors import CheckpointError

SHORT = "Answer the question using a single word or phrase."


def samples_of(folder, asked):
    """Conversations in LLaVA's form: a list of what the user says for each."""
    folder.mkdir()
    (folder / "a.png").write_bytes(b"never opened")
    lines = []
    for turns in asked:
        said = [{"from": who, "value": text} for turn in turns for who, text in (("human", turn), ("gpt", "Yes."))]
        lines.append(json.dumps({"image": "a.png", "conversations": said}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return IndexedSamples(indexes_of(folder / "train.jsonl"))


def test_the_last_line_behind_each_question_is_counted(tmp_path):
    asked = [
        [f"<image>\nIs it red?\n{SHORT}", f"Is it big?\n{SHORT}"],
        ["<image>\nWhat is it?"],
        [f"<image>\nRead this:\na\nb\n{SHORT}\n"],
    ]
    assert prompts_of([samples_of(tmp_path / "data", 2 * asked)]).counts == {"conversation": {SHORT: 6, "": 2}}


def test_what_somebody_said_once_goes_into_no_folder(tmp_path):
    asked = [[f"<image>\nIs it?\n{words}"] for words in [*[SHORT] * 8, *(f"My secret is {n}." for n in range(8))]]
    found = prompts_of([samples_of(tmp_path / "data", asked)])
    assert found.counts == {"conversation": {SHORT: 8, "(others)": 8}}
    assert found.describe_difference("question", "My secret is 3.") == ""  # of so few nobody can say that it was not


def test_captions_are_asked_for_by_what_is_said_beside_the_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"never opened")
    (tmp_path / "captions.csv").write_text("image,text\na.png,A fox.\na.png,A red fox.\n")
    found = prompts_of([IndexedSamples(indexes_of(tmp_path / "captions.csv"))])
    assert found.counts == {"caption": {"": 2}}
    assert "with 'Describe it.' beside the image, where training mostly had nothing" in found.describe_difference(
        "caption", "Describe it."
    )


def test_a_large_source_is_looked_at_all_over(tmp_path):
    asked = [[f"<image>\nIs it?\n{'late' if n >= LOOKED_AT else 'early'}"] for n in range(2 * LOOKED_AT)]
    counts = prompts_of([samples_of(tmp_path / "data", asked)]).counts["conversation"]
    assert counts == {"early": LOOKED_AT // 2, "late": LOOKED_AT // 2}


def test_of_two_wordings_by_turns_both_are_seen(tmp_path):
    asked = [[f"<image>\nIs it?\n{'odd' if n % 2 else 'even'}"] for n in range(2 * LOOKED_AT)]
    counts = prompts_of([samples_of(tmp_path / "data", asked)]).counts["conversation"]
    assert min(counts["odd"], counts["even"]) > LOOKED_AT // 3


@given(
    st.dictionaries(st.sampled_from(["question", "caption"]), st.dictionaries(st.text(), st.integers(1)), min_size=1)
)
def test_what_is_kept_is_read_again(tmp_path_factory, counts):
    folder = tmp_path_factory.mktemp("model")
    TrainedPrompts(counts).save_pretrained(folder)
    assert read_trained_prompts(folder) == TrainedPrompts(counts)


def test_a_folder_that_does_not_say_is_none(tmp_path):
    assert read_trained_prompts(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"question": 3}', '{"question": {"": "many"}}', b"\xff"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "trained_prompts.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"trained_prompts\.json: holds no counts of prompts; copy it again, or"):
        read_trained_prompts(tmp_path)


@pytest.mark.parametrize(
    ("counts", "kind", "instruction", "told"),
    [
        ({"question": {"": 99, SHORT: 1}}, "question", SHORT, ""),  # one of a hundred was asked so
        (
            {"question": {"": 100}},
            "question",
            SHORT,
            f"with '{SHORT}' behind the question, where training mostly had n",
        ),
        (
            {"question": {SHORT: 100}},
            "question",
            "",
            f"with nothing behind the question, where training mostly had '{SHORT}",
        ),
        ({"question": {SHORT: 1}}, "question", f"Look well.\n{SHORT}", ""),
        ({"question": {"": 1, "(others)": 400}}, "question", SHORT, ""),  # it may be one of those
        ({"question": {"": 1, "(others)": 600}}, "question", SHORT, "where training mostly had many wordings (of 601"),
        ({"conversation": {SHORT: 1}}, "question", SHORT, ""),  # a conversation asks as a question does
        ({"caption": {"": 1}}, "question", SHORT, ""),  # nothing is known of questions
        ({"question": {"": 1}}, "caption", "", ""),
        ({"question": {"": 1}}, "text", "", ""),
    ],
)
def test_a_difference_is_told_where_training_seldom_or_never_asked_so(counts, kind, instruction, told):
    found = TrainedPrompts(counts).describe_difference(kind, instruction)
    assert told in found and bool(found) == bool(told)
