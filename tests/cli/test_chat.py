"""`arlow chat`: turns from a pipe and a terminal; what goes wrong is a sentence, and the chat goes on."""

import io
import os
import pty
import signal
import sys

import pytest
from PIL import Image

from arlow_vl.cli import main
from arlow_vl.serving.conversation import Conversation
from arlow_vl.serving.decoding import Decoding


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "red").save("red.png")
    (tmp_path / "broken.png").write_bytes(b"no image")


@pytest.fixture
def chat(models, monkeypatch, capsys):
    def talk(*lines, words=(), folder=models.vision):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = main(["chat", *words, "--model", folder, "--device", "cpu", "--max-new-tokens", "4"])
        out, err = capsys.readouterr()
        return status, out, [line for line in err.splitlines() if line.startswith("arlow: ")]

    return talk


def expected(assistant, *turns, shown="> "):
    """What a conversation of (images, text) answers, each answer below its turn."""
    conversation = Conversation(assistant, Decoding(max_new_tokens=4))
    out = ""
    for paths, text in turns:
        for path in paths:
            conversation.show(path)
        out += f"{shown}{text}".rstrip() + "\n" if shown else ""
        out += "".join(conversation.answer(text)) + "\n"
    return conversation, out


def printed(text):
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def test_turns_of_a_pipe_are_answered_one_behind_the_other(chat, models, assistants):
    status, out, err = chat("is it red?", "", "and big?", words=["red.png"])
    conversation, whole = expected(assistants[models.vision], (["red.png"], "is it red?"), ([], "and big?"))
    assert (status, out, err) == (0, printed(whole).replace("> and big?", ">\n> and big?"), [])
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


def test_an_image_is_shown_with_the_next_turn_and_alone_asks_for_a_caption(chat, models, assistants):
    _, out, _ = chat("hello", "/image red.png", "", "/quit", "not read")
    _, whole = expected(assistants[models.vision], ([], "hello"), (["red.png"], ""))
    before, caption = printed(whole).split("\n>\n")
    shown = "> /image red.png\nred.png: shown with the next turn"
    assert out == f"{before}\n{shown}\n>\n{caption}> /quit\n"


def test_after_a_reset_nothing_of_before_is_known(chat, models, assistants):
    _, out, _ = chat("hello", "/image red.png", "/reset", "hello")
    _, answer = expected(assistants[models.vision], ([], "hello"))
    between = "> /image red.png\nred.png: shown with the next turn\n> /reset\n"
    assert out == printed(f"{answer}{between}{answer}")


def test_what_goes_wrong_is_a_sentence_and_the_chat_goes_on(chat, models, assistants):
    lines = ["/image broken.png", "/image none.png", "/image", "/imag red.png", "word " * 200, "hello"]
    status, out, err = chat(*lines)
    typed = "".join(f"> {line}".rstrip() + "\n" for line in lines[:-1])
    assert status == 0 and out == typed + printed(expected(assistants[models.vision], ([], "hello"))[1])
    assert [line.removeprefix("arlow: ") for line in err] == [
        "broken.png: no image of a known format",
        "none.png: no such file or folder; name an image file",
        "/image needs the path of an image file",
        "there is no /imag; /help lists what there is",
        err[4].removeprefix("arlow: "),
    ]
    assert "the model reads 128 with its answer; shorten it" in err[4]


def test_a_conversation_that_is_full_says_to_begin_anew(chat):
    status, _, err = chat(*["the cat sat on a mat"] * 6, "/reset", "hello")
    assert status == 0 and err and all(line.endswith("shorten it, or begin anew with /reset") for line in err)


def test_a_text_model_talks_and_says_that_it_sees_no_images(chat, models, assistants):
    status, out, err = chat("hello", "/image red.png", folder=models.text)
    assert status == 0
    assert out == printed(expected(assistants[models.text], ([], "hello"))[1]) + "> /image red.png\n"
    assert "this is a text model and sees no images" in err[0]


def test_a_broken_image_of_the_command_line_is_told_before_a_model_is_opened(chat):
    status, out, err = chat(words=["broken.png"], folder="nowhere")
    assert (status, out, err) == (3, "", ["arlow: broken.png: no image of a known format"])


def test_ctrl_c_stops_the_answer_and_not_the_chat(models, monkeypatch, assistants):
    class Interrupting(io.StringIO):
        is_first = True

        def write(self, text):
            super().write(text)
            if self.is_first and "> hello\n" in self.getvalue() and text not in ("> hello", "\n"):
                self.is_first = False
                signal.raise_signal(signal.SIGINT)
            return len(text)

    out = Interrupting()
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nand then?\n"))
    monkeypatch.setattr(sys, "stdout", out)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert main(["chat", "--model", models.vision, "--device", "cpu", "--max-new-tokens", "4"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    first, second = out.getvalue().removeprefix("> hello\n").split(" ...\n")
    _, whole = expected(assistants[models.vision], ([], "hello"), shown="")
    assert printed(whole).startswith(first) and len(first) < len(whole) - 1
    assert second.startswith("> and then?\n") and second.endswith("\n") and len(second) > len("> and then?\n") + 1


def test_in_a_terminal_turns_are_asked_for_and_ctrl_d_ends(models, monkeypatch, capsys, assistants):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(ours, b"hello\n\x04")
        assert main(["chat", "--model", models.vision, "--device", "cpu", "--max-new-tokens", "4"]) == 0
    os.close(ours)
    out = capsys.readouterr().out
    assert "/image PATH" in out and out.count("> ") == 2
    assert printed(expected(assistants[models.vision], ([], "hello"), shown="")[1]) in out


def test_a_line_that_is_not_utf8_costs_itself_alone(models, monkeypatch, capsys, assistants):
    lines = io.TextIOWrapper(io.BytesIO(b"h\xff\xfe\nhello\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", lines)
    assert main(["chat", "--model", models.text, "--device", "cpu", "--max-new-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    assert out == "> h\\udcff\\udcfe\n" + expected(assistants[models.text], ([], "hello"))[1]
    assert "arlow: the line is not UTF-8; write it again" in err
