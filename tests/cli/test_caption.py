"""`arlow caption`: folders and globs, a file that is gone on with, bad images that cost only themselves."""

import errno
import json
import os
import signal
import time

import pytest
from PIL import Image

import vision.whole_files
from arlow_vl.cli import main
from arlow_vl.printing import number_of
from arlow_vl.serving.answer_file import AnswerFile
from arlow_vl.serving.captioning import answer_images, one_line
from arlow_vl.serving.decoding import Decoding
from arlow_vl.stopping import end_by_sigterm


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Nine images of which the third is broken, in two folders."""
    monkeypatch.chdir(tmp_path)
    for number in range(9):
        path = tmp_path / ("photos" if number < 6 else "scans") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (25 * number, 255 - 25 * number, 9 * number)).save(path)
    (tmp_path / "photos" / "2.png").write_bytes(b"no image")
    return tmp_path


def caption(models, *words):
    return main(["caption", *words, "--model", models.vision, "--device", "cpu", "--max-new-tokens", "4"])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_images_of_folders_and_globs_are_captioned_and_the_bad_one_named(photos, models, capsys):
    (photos / "photos" / "notes.txt").write_text("none")
    assert caption(models, "photos", "scans/*.png", "--batch-size", "3") == 3
    out, err = capsys.readouterr()
    good = [f"photos/{n}.png" for n in (0, 1, 3, 4, 5)] + [f"scans/{n}.png" for n in (6, 7, 8)]
    assert [line.partition(": ")[0] for line in out.splitlines()] == good
    told = [line for line in err.splitlines() if line.startswith("arlow: ")]
    assert told == [
        "arlow: 1 file beside the images left out, as no image",
        "arlow: photos/2.png: no image of a known format",
        "arlow: 1 of 9 images could not be read and have no caption",
    ]


def test_a_caption_is_what_the_model_writes_about_the_image_alone(photos, models, assistants, capsys):
    assert caption(models, "scans", "--out", "c.jsonl", "--precision", "float32") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "c.jsonl: 3 images"
    assistant = assistants[models.vision]
    lines = lines_of(photos / "c.jsonl")
    assert [line["image"] for line in lines] == ["scans/6.png", "scans/7.png", "scans/8.png"]
    for line in lines:
        how = {"batch_size": 1, "on_fault": print}
        ((_, written),) = next(answer_images(assistant, [line["image"]], None, Decoding(max_new_tokens=4), **how))
        assert line["caption"] == one_line(written) and line["finish_reason"] == written.finish_reason
        assert line["nats"] == pytest.approx(written.nats, rel=1e-4)


def test_a_file_counts_an_image_that_was_named_twice_once(photos, models, capsys):
    assert caption(models, "photos/2.png", "photos/2.png", "scans", "scans/*.png", "--out", "c.jsonl") == 3
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("arlow: ")] == [
        "arlow: photos/2.png: no image of a known format",
        "arlow: 1 of 4 images could not be read and have no caption",
    ]


def test_a_question_is_kept_with_its_answer(photos, models):
    assert caption(models, "scans", "--out", "c.jsonl", "--question", "what?") == 0
    assert {(line["question"], "answer" in line, "caption" in line) for line in lines_of(photos / "c.jsonl")} == {
        ("what?", True, False)
    }


def test_a_job_that_was_killed_goes_on_and_asks_about_no_image_again(photos, models, capsys):
    assert caption(models, "photos", "scans", "--out", "c.jsonl") == 3
    whole = (photos / "c.jsonl").read_bytes()
    assert len(whole.splitlines()) == 8
    cut = whole.index(b"\n", len(whole) // 2) + 1
    (photos / "c.jsonl").write_bytes(whole[: cut + 20])  # in the middle of a line
    assert caption(models, "photos", "scans", "--out", "c.jsonl") == 3
    again = lines_of(photos / "c.jsonl")
    first = [json.loads(line) for line in whole.splitlines()]
    assert [(line["image"], line["caption"]) for line in again] == [(line["image"], line["caption"]) for line in first]
    assert (photos / "c.jsonl").read_bytes()[:cut] == whole[:cut]


def test_a_finished_job_opens_no_model_weights(photos, models, capsys):
    assert caption(models, "scans", "--out", "c.jsonl") == 0
    before = (photos / "c.jsonl").read_bytes()
    began = time.process_time()
    assert caption(models, "scans", "--out", "c.jsonl") == 0
    assert time.process_time() - began < 0.3
    assert capsys.readouterr().out.splitlines()[-1] == "c.jsonl: 3 images"
    assert (photos / "c.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--beams", "2"], "was written in another way (--beams 1, now 2); name another file, or remove it"),
        (["--question", "what?"], "(--question none, now what?)"),
        (["--precision", "bfloat16"], "(--precision none, now bfloat16)"),
    ],
)
def test_a_file_of_other_answers_is_refused(photos, models, words, sentence, capsys):
    assert caption(models, "scans", "--out", "c.jsonl") == 0
    assert caption(models, "scans", "--out", "c.jsonl", *words) == 3
    assert sentence in capsys.readouterr().err


@pytest.fixture
def ended_by_sigterm():
    """As the command has it from its first line on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background process lacks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_by_sigterm()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "told"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")])
def test_what_stops_a_job_leaves_whole_lines_and_it_says_how_to_go_on(
    photos, models, ended_by_sigterm, number, told, monkeypatch, capsys
):
    for colour in range(100):
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(photos / "scans" / f"more-{colour:03}.png")
    out, add = photos / "c.jsonl", AnswerFile.add

    def add_and_stop(self, lines):
        add(self, lines)
        if len(self.done) == 5:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(AnswerFile, "add", add_and_stop)
        status = caption(models, "scans", "--out", "c.jsonl", "--batch-size", "1")
    assert status == 128 + number
    done = len(lines_of(out))
    assert done == 5
    sentence = f"arlow: {told}; c.jsonl holds {number_of(done, 'image')}, and the same command continues"
    assert capsys.readouterr().err.splitlines()[-1] == sentence
    assert caption(models, "scans", "--out", "c.jsonl") == 0
    assert len({line["image"] for line in lines_of(out)}) == len(lines_of(out)) == 103


def test_a_job_that_keeps_nothing_says_what_would(photos, models, ended_by_sigterm, monkeypatch, capsys):
    shown = []

    def show_and_kill(line):
        shown.append(line)
        if len(shown) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("arlow_vl.cli.caption.print_line", show_and_kill)
    assert caption(models, "scans", "--batch-size", "2") == 143
    told = "arlow: ended by SIGTERM; done with 1 of 3 images; with --out FILE the same command continues"
    assert capsys.readouterr().err.splitlines()[-1] == told


def test_all_kinds_of_decoding_are_taken(photos, models, capsys):
    for words in (["--beams", "2"], ["--temperature", "1", "--top-p", "0.9", "--top-k", "5", "--seed", "3"]):
        assert caption(models, "scans", *words) == 0
        first = capsys.readouterr().out
        assert caption(models, "scans", *words, "--batch-size", "2", "--repetition-penalty", "1.0") == 0
        assert capsys.readouterr().out == first


@pytest.mark.parametrize("command", [["caption", "a.png"], ["vqa", "a.png", "what?"], ["chat"], ["generate", "a"]])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--beams", "100"], "--beams is from 1 to 64, got 100"),
        (["--beams", "2", "--temperature", "1"], "--beams above 1 searches and --temperature above 0 draws"),
        (["--top-p", "0"], "--top-p is above 0, got 0; take --top-k 1 or --temperature 0"),
        (["--temperature", "x"], "argument --temperature: invalid float value: 'x'"),
        (["--max-new-tokens", "0"], "--max-new-tokens: must be a whole number of at least 1"),
        (["--seed", "-1"], "seed is from 0 to 2**64 - 1, got -1"),
        (["--stop", ""], "a stop text is empty"),
        (["--precision", "float8"], "cannot be float8; did you mean float"),
    ],
)
def test_decoding_is_refused_alike_before_a_model_is_opened(command, words, sentence, capsys):
    assert main([*command, "--model", "nowhere", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(photos, models, capsys):
    for command in (["caption", "scans/6.png"], ["explain", "scans/6.png"]):
        assert main([*command, "--model", models.vision, "--device", "warp:1"]) == 4
        assert "device warp:1 cannot be used: " in capsys.readouterr().err


def test_in_bfloat16_the_same_images_are_captioned_and_explained(photos, models, capsys):
    assert caption(models, "scans", "--precision", "bfloat16") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    words = ["--device", "cpu", "--precision", "bfloat16", "--out", "heat.png", "--max-new-tokens", "4"]
    assert main(["explain", "scans/6.png", "--model", models.vision, *words]) == 0
    assert (photos / "heat.png").exists()


def test_a_full_disk_leaves_the_sheet_of_before_and_no_half_of_one(photos, models, monkeypatch, capsys):
    (photos / "heat.png").write_bytes(b"of before")
    before = sorted(photos.iterdir())

    def no_room(partial, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(vision.whole_files, "put_in_place", no_room)
    words = ["--device", "cpu", "--out", "heat.png", "--max-new-tokens", "2"]
    assert main(["explain", "scans/6.png", "--model", models.vision, *words]) == 6
    assert "the disk at heat.png is full" in capsys.readouterr().err
    assert (photos / "heat.png").read_bytes() == b"of before" and sorted(photos.iterdir()) == before


def test_a_text_model_captions_nothing(photos, models, capsys):
    assert main(["caption", "scans", "--model", models.text]) == 4
    assert "holds a model of type 'arlow', expected 'arlow_vl'" in capsys.readouterr().err
    assert main(["caption", "scans", "--model", models.text, "--out", "c.jsonl"]) == 4
    assert not (photos / "c.jsonl").exists()


def test_a_file_whose_name_reads_like_an_address_is_that_file(photos, models, capsys):
    names = ["data:1.png", "file:2.png", "http:3.png"]
    for name in names:
        Image.new("RGB", (20, 20), "red").save(photos / name, format="PNG")
    assert caption(models, *names) == 0
    assert [line.rpartition(": ")[0] for line in capsys.readouterr().out.splitlines()] == names


@pytest.mark.parametrize(
    "words",
    [["vqa", "data:1.png", "what?"], ["explain"], ["verify-heat", "data:1.png"], ["chat"]],
    ids=lambda words: words[0],
)
def test_every_command_takes_that_file(photos, words, capsys):
    Image.new("RGB", (20, 20), "red").save(photos / "data:1.png", format="PNG")
    images = [] if words[0] == "vqa" else ["data:1.png"]
    assert main([*words, *images, "--model", "nowhere"]) == 4
    assert "nowhere" in capsys.readouterr().err


def test_a_device_without_values_is_refused(photos, models, capsys):
    words = ["caption", "photos/0.png", "--model", models.vision, "--device", "meta"]
    assert main(words) == 4 and "device meta computes nothing; name cpu, cuda" in capsys.readouterr().err


def test_the_smallest_temperature_is_one_that_can_be_divided_by(photos, models, capsys):
    assert caption(models, "photos/0.png", "--temperature", "1e-320", "--seed", "1") == 0
    drawn = capsys.readouterr().out
    assert caption(models, "photos/0.png") == 0 and capsys.readouterr().out == drawn


@pytest.mark.parametrize("option", ["--stop", "--question"])
def test_words_that_are_not_utf8_are_refused(photos, models, option, capsys):
    assert caption(models, "photos/0.png", option, "a\udcff") == 2
    assert f"argument {option}: is not UTF-8; give text in UTF-8" in capsys.readouterr().err
