"""`arlow vqa`: a question about one image or several, and how likely given answers are."""

import pytest
from PIL import Image

from arlow_vl.cli import main
from arlow_vl.data.prompts import about_image
from arlow_vl.printing import visible
from arlow_vl.serving.captioning import one_line
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.writing import choose, write


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for color in ("red", "blue"):
        Image.new("RGB", (20, 20), color).save(f"{color}.png")
    return ["red.png", "blue.png"]


def vqa(models, *words):
    return main(["vqa", *words, "--model", models.vision, "--device", "cpu"])


def asked(assistant, images, question):
    return assistant, about_image(question, images=len(images)), [assistant.image(path) for path in images]


@pytest.mark.parametrize("count", [1, 2])
def test_the_images_stand_in_one_prompt_in_front_of_the_question(images, models, assistants, count, capsys):
    shown = images[:count]
    assert vqa(models, *shown, "is it red?", "--max-new-tokens", "5") == 0
    assistant, messages, prepared = asked(assistants[models.vision], shown, "is it red?")
    (written,) = write(assistant, [assistant.chat(messages, prepared)], Decoding(max_new_tokens=5))
    assert capsys.readouterr().out == f"{visible(one_line(written))}\n"


def test_choices_are_printed_with_their_probabilities_the_likeliest_first(images, models, assistants, capsys):
    assert vqa(models, "red.png", "is it red?", "--choices", "yes", "no", "a big dog") == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    shares = dict(
        zip(
            ["yes", "no", "a big dog"],
            choose(*asked(assistants[models.vision], ["red.png"], "is it red?"), ["yes", "no", "a big dog"]),
            strict=True,
        )
    )
    assert [answer for _, answer in lines] == sorted(shares, key=lambda answer: -shares[answer])
    assert [share for share, _ in lines] == [f"{shares[answer]:.2%}" for _, answer in lines]


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["red.png", "blue.png"], 2, "the question comes last, and blue.png is a file; put the question behind"),
        (["red.png"], 2, "the following arguments are required: QUESTION"),
        (["red.png", " "], 2, "argument QUESTION: is empty"),
        (["none.png", "what?"], 3, "none.png: no such file"),
        (["red.png", "what?", "--choices", "yes"], 2, "two different answers or more, got 'yes'"),
        (["red.png", "what?", "--choices", "a", "b", "--beams", "2"], 2, "leave the options of decoding out"),
        (["red.png", "word " * 200], 2, "the model reads 128 with its answer; shorten it"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(images, models, words, status, sentence, capsys):
    assert vqa(models, *words) == status
    out, err = capsys.readouterr()
    assert sentence in err and not out


@pytest.mark.parametrize("choices", [["yes"], ["yes", "yes"], ["yes", " yes"]])
def test_choices_that_are_none_are_refused_before_a_model_is_opened(images, choices, capsys):
    assert main(["vqa", "red.png", "is it?", "--model", "nowhere", "--choices", *choices]) == 2
    assert "choices are two different answers or more, got" in capsys.readouterr().err
