"""`arlow generate`: what a model of either kind writes behind a text, or answers."""

import pytest

from arlow_vl.cli import main
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.writing import write


@pytest.fixture(params=["text", "vision"])
def folder(request, models):
    return getattr(models, request.param)


@pytest.mark.parametrize("is_chat", [False, True])
def test_the_text_is_gone_on_with_or_answered(folder, is_chat, assistants, capsys):
    words = ["--max-new-tokens", "9", "--temperature", "1", "--seed", "2", *(["--chat"] if is_chat else [])]
    assert main(["generate", "the cat", "--model", folder, "--device", "cpu", *words]) == 0
    assistant = assistants[folder]
    turn = [{"role": "user", "content": "the cat"}]
    prompt = assistant.chat(turn) if is_chat else assistant.text("the cat")
    (written,) = write(assistant, [prompt], Decoding(max_new_tokens=9, temperature=1.0, seed=2))
    shown = "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in written.text)
    assert capsys.readouterr().out == f"{shown}\n" and written.text


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["the cat " * 200], 2, "the model reads 128 with its answer; shorten it"),
        ([" ", "--chat"], 2, "a turn of a chat needs some text"),
        (["a", "--device", "warp"], 4, "device warp cannot be used"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused_in_a_sentence(models, words, status, sentence, capsys):
    assert main(["generate", *words, "--model", models.text]) == status
    out, err = capsys.readouterr()
    assert sentence in err and not out
