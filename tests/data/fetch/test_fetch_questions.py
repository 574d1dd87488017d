from collections import Counter

from arlow_vl.data.fetch.images import SourceImage
from arlow_vl.data.fetch.questions import ask, balance


def image(key, kind, source="emoji", flag_of=None):
    return SourceImage(
        key=key,
        source=source,
        license="MIT",
        style="t",
        caption="c",
        names=(key,),
        kind=kind,
        flag_of=flag_of,
        data=b"",
    )


def answers(questions, question):
    return Counter(q["answer"] for asked in questions for q in asked if q["question"] == question)


def test_yes_and_no_are_equally_frequent_in_every_source():
    many = [image(f"v{n}", "vehicle") for n in range(30)] + [image(f"a{n}", "animal") for n in range(7)]
    few = [image(f"x{n}", "vehicle", "stamps") for n in range(2)] + [
        image(f"y{n}", "animal", "stamps") for n in range(9)
    ]
    questions = ask(many + few)
    assert answers(questions[: len(many)], "Is it an animal?") == {"yes": 7, "no": 7}
    assert answers(questions[len(many) :], "Is it an animal?") == {"yes": 2, "no": 2}


def test_images_of_doubtful_kind_are_not_asked():
    assert (
        balance([image("f", "face"), image("n", None)], lambda p: p.kind == "animal", lambda p: p.kind == "flag") == []
    )


def test_the_choice_does_not_depend_on_the_order():
    images = [image(f"v{n}", "vehicle") for n in range(30)] + [image("a", "animal")]
    asked = {p.key for p, q in zip(images, ask(images), strict=True) if len(q) > 1}
    turned = {p.key for p, q in zip(images[::-1], ask(images[::-1]), strict=True) if len(q) > 1}
    assert asked == turned


def test_kind_and_country_are_open_questions():
    [questions] = ask([image("f", "flag", flag_of="Norway")])
    assert [(q["question"], q["answer"], q["kind"]) for q in questions] == [
        ("What kind of thing is it?", "flag", "other"),
        ("Whose flag is it?", "Norway", "other"),
    ]
