"""Question and annotation files of VQAv2, OK-VQA, GQA and TextVQA."""

import json

import pytest

from arlow_vl.errors import DataError
from tests.data.formats.conftest import turns_of

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


def asked(number, image_id=7, question="What is it?"):
    return {"question_id": number, "image_id": image_id, "question": question}


def answered(number, answers=("fox", "fox", "dog"), **more):
    return {"question_id": number, "answers": [{"answer": answer} for answer in answers], **more}


def vqa(folder, questions, annotations):
    folder.write(QUESTIONS, {"data_subtype": "train2014", "questions": questions})
    folder.write(ANNOTATIONS, {"annotations": annotations, "question_type": "x"})


def test_ten_answers_are_references_and_the_datas_choice_is_trained_on(folder):
    folder.images("train2014/COCO_train2014_000000000007.jpg")
    vqa(
        folder,
        [asked(1), asked(2, question="Is it red?")],
        [answered(2, multiple_choice_answer="yes", answer_type="yes/no"), answered(1)],
    )
    (sample,) = folder.read(QUESTIONS)
    assert sample.key == "7"
    assert turns_of(sample) == [
        [("user", "[image]What is it?"), ("assistant", "fox")],
        [("user", "[image]Is it red?"), ("assistant", "yes")],
    ]
    assert [(text.task, text.references, text.kind) for text in sample.texts] == [
        ("question", ("fox", "fox", "dog"), ""),
        ("question", ("fox", "fox", "dog"), "yes/no"),
    ]
    assert [file.name for file in folder.source.files] == [QUESTIONS, ANNOTATIONS]


def test_an_empty_answer_counts_as_one_who_was_asked_and_is_never_trained_on(folder):
    folder.images("7.jpg")
    vqa(folder, [asked(1), asked(2)], [answered(1, ["", " ", "fox"]), answered(2, ["", ""])])
    (sample,) = folder.read(QUESTIONS)
    assert [(text.references, text.messages[-1]["content"]) for text in sample.texts] == [(("", "", "fox"), "fox")]
    assert folder.texts_skipped == {"missing_answer": 1}


@pytest.mark.parametrize("name", ["COCO_train2014_000000000007.jpg", "000000000007.jpg", "7.jpg", "7.png"])
def test_an_image_is_found_by_its_id(folder, name):
    folder.images(name)
    vqa(folder, [asked(1)], [answered(1)])
    assert folder.read("")[0].images[0].path.endswith(name)


def test_questions_that_cannot_be_used_are_counted_and_never_trained_on(folder):
    folder.images("7.jpg")
    questions = [asked(n) for n in range(9)]
    questions += [
        asked(0),
        asked(20, question=None),
        asked(21, question=["a"]),
        asked(22, image_id=None),
        3,
        asked(30, 8),
    ]
    annotations = [
        answered(0),
        answered(1, multiple_choice_answer=["fox", "dog"]),
        answered(2, multiple_choice_answer=""),
        answered(3, multiple_choice_answer=3),
        {"question_id": 4, "answers": "fox"},
        {"question_id": 5, "answers": [None, {"answer": ["a"]}, 3]},
        {"question_id": 6},
        answered(7, ("fox", "")),
        answered(99),
        *(answered(n) for n in (20, 21, 22, 30)),
    ]
    vqa(folder, questions, annotations)
    (sample,) = folder.read(QUESTIONS)
    assert [text.references for text in sample.texts] == [("fox", "fox", "dog"), ("fox", "")]
    assert folder.skipped == {"missing_image_file": 1}
    assert folder.texts_skipped == {
        "duplicate_id": 1,
        "answer_not_text": 2,
        "empty_answer": 1,
        "answers_not_a_list": 1,
        "missing_answer": 3,
        "missing_question": 1,
        "question_not_text": 1,
        "missing_image_id": 1,
        "entry_not_an_object": 1,
        "unknown_question_id": 1,
    }
    assert dict(folder.source.tally.ignored) == {
        "reference: missing_answer": 1,
        "reference: answer_not_text": 2,
    }


def test_gqa_and_textvqa_are_read(folder):
    folder.images("n1.jpg")
    entry = {"semantic": [], "imageId": "n1", "question": "Red?", "answer": "yes", "types": {"structural": "verify"}}
    folder.write("gqa.json", {"1": entry, "2": {**entry, "answer": ["a"]}, "3": None})
    (sample,) = folder.read("gqa.json")
    assert (turns_of(sample), sample.texts[0].kind) == ([[("user", "[image]Red?"), ("assistant", "yes")]], "verify")
    assert folder.texts_skipped == {"answer_not_text": 1, "entry_not_an_object": 1}
    data = [{"question_id": 1, "image_id": "n1", "question": "Make?", "answers": ["nokia", "toshiba", "nokia"]}]
    folder.write("t.json", {"dataset_name": "textvqa", "data": data})
    (sample,) = folder.read("t.json")
    assert (turns_of(sample)[0][1], sample.texts[0].references) == (
        ("assistant", "nokia"),
        ("nokia", "toshiba", "nokia"),
    )


def test_a_question_file_without_its_annotations_is_one_sentence(folder):
    folder.write(QUESTIONS, {"questions": [asked(1)]})
    with pytest.raises(DataError, match=f"no annotation file {ANNOTATIONS} beside it; put it there"):
        folder.read(QUESTIONS)


def test_an_image_that_no_name_finds_says_what_was_looked_for(folder):
    vqa(folder, [asked(1)], [answered(1)])
    assert folder.read(QUESTIONS) == []
    (bad,) = folder.source.tally.bad
    assert (bad.reason, bad.members) == ("missing_image_file", 1)
    assert "COCO_train2014_000000000007.jpg" in bad.detail


def test_the_three_files_of_pope_each_count_from_one(folder):
    folder.images("1.jpg")
    for name in ("adversarial", "popular", "random"):
        lines = [{"question_id": 1, "image": "1.jpg", "text": f"Is there a {name}?", "label": "no"}]
        folder.write(f"coco_pope_{name}.json", "\n".join(map(json.dumps, [*lines, *lines])))
    (sample,) = folder.read("coco_pope_*.json")
    assert len(sample.texts) == 3
    assert folder.texts_skipped == {"duplicate_id": 3}
