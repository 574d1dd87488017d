"""The command line itself: version, help with examples, suggestions, and errors that are one line."""

import os
import resource
import shlex
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest

from arlow_vl.cli import build_parser, main, run
from arlow_vl.cli.parser import Parser
from arlow_vl.evaluation.tasks.task import shipped_tasks
from tests.tiny_runs import SAMPLES


def parsers(parser: Parser) -> list[Parser]:
    below = parser.commands.choices.values() if parser.commands else []
    return [parser, *(deeper for child in below for deeper in parsers(child))]


PARSERS = parsers(build_parser())
EXAMPLES = sorted({line for parser in PARSERS for line in parser.examples})


def error_of(words: list[str], capsys) -> str:
    """The one line that a wrong call prints, after checking that it ends with 2."""
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    return line


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"arlow {version('arlow-vl')}\n"


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_every_help_ends_with_one_or_two_examples_of_its_own(parser):
    assert 1 <= len(parser.examples) <= 2
    assert all(line.startswith(f"{parser.prog} ") or line == parser.prog for line in parser.examples)
    assert parser.format_help().endswith("examples:\n" + "".join(f"  {line}\n" for line in parser.examples))


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_what_is_written_goes_by_either_name(parser):
    """`--out` and `--output`; argparse takes the shorter for the longer."""
    assert "--output" in parser._option_string_actions or "--out" not in parser._option_string_actions


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_of_a_help_is_understood(line):
    args = build_parser().parse_args(shlex.split(line)[1:])
    assert callable(args.run)


@pytest.mark.parametrize("line", [line for line in EXAMPLES if "--task " in line])
def test_every_task_of_an_example_comes_with_the_package(line):
    words = shlex.split(line)
    named = {name for word, name in pairwise(words) if word == "--task"}
    assert named <= {*shipped_tasks()}


def test_the_examples_of_fit_are_recipes_that_are_understood():
    from arlow_vl.cli.fit import EXAMPLES
    from arlow_vl.training.recipe_parsing import parse_recipe

    for line in EXAMPLES:
        assert parse_recipe(shlex.split(line)[2:])


def test_the_help_of_fit_shows_them_too(capsys):
    assert main(["fit", "--help"]) == 0
    assert "examples:\n  arlow fit --config" in capsys.readouterr().out


@pytest.mark.parametrize("parser", [p for p in PARSERS if p.commands], ids=lambda parser: parser.prog)
def test_a_command_that_needs_another_answers_with_its_help(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        main(parser.prog.split()[1:])
    assert stop.value.code == 2
    assert capsys.readouterr().err == parser.format_help()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("capton photo.jpg", "unknown command capton; did you mean caption?; see `arlow --help`"),
        ("verify_frozen a b", "unknown command verify_frozen; did you mean verify-frozen?"),
        ("zzz", "unknown command zzz; known are data, tokenizer,"),
        ("data fech", "unknown command fech; did you mean fetch?; see `arlow data --help`"),
        ("checkpoint verfy x", "unknown command verfy; did you mean verify?"),
        ("--debgu caption x", "unknown option --debgu; did you mean --debug?"),
        ("caption --mdoel hf photo.jpg", "unknown option --mdoel; did you mean --model?; see `arlow caption --help`"),
        ("caption --mdoel=hf photo.jpg", "unknown option --mdoel; did you mean --model?"),
        ("caption --model hf photo.jpg --qestion what?", "unknown option --qestion; did you mean --question?"),
        ("explain --layr 3", "unknown option --layr; did you mean --layer?"),
        ("data verify --jsno a.tar", "unknown option --jsno; did you mean --json?"),
        ("image check -x a.jpg", "unknown option -x"),
        ("evaluate --model a --output b --features-dtype flaot16", "cannot be flaot16; did you mean float16?"),
        ("caption photo.jpg", "the following arguments are required: --model"),
        ("caption --model hf", "the following arguments are required: IMAGE"),
        ("doctor now", "unrecognized arguments: now"),
        ("caption --model", "argument --model: expected one argument"),
    ],
)
def test_what_cannot_be_understood_is_one_line_with_what_was_meant(words, sentence, capsys):
    line = error_of(words.split(), capsys)
    assert line.startswith("arlow: ") and sentence in line


@pytest.mark.parametrize("number", ["0", "-3", "1.5", "many"])
@pytest.mark.parametrize(
    "words",
    [
        "caption photo.jpg --model hf --max-new-tokens",
        "explain photo.jpg --model hf --max-new-tokens",
        "evaluate --model hf --task easy-vqa --output out --limit",
        "tokenizer train a.txt --output out --vocab-size",
        "tokenizer train a.txt --output out --vocab-size 300 --max-bytes",
    ],
)
def test_a_count_is_a_whole_number_of_at_least_1(words, number, capsys):
    sentence = f"{words.split()[-1]}: must be a whole number of at least 1, got '{number}'"
    assert sentence in error_of([*words.split(), number], capsys)


@pytest.mark.parametrize("command", ["caption", "explain"])
def test_an_empty_question_is_refused(command, capsys):
    assert "--question: is empty" in error_of([command, "photo.jpg", "--model", "hf", "--question", " "], capsys)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("explain photo.jpg --model hf --out {folder}", "{folder} is a folder; name a file"),
        ("explain photo.jpg --model hf --out {file}/sheet.png", "{file} is a file; name another place"),
        ("report results --output {folder}", "{folder} is a folder; name a file"),
        ("evaluate --model hf --output {file}", "{file} is a file; name a folder"),
        ("evaluate --model hf --output out --features {file}/deep/er", "{file} is a file; name another place"),
        ("tokenizer train a.txt --vocab-size 300 --output {file}", "{file} is a file; name a folder"),
        ("data fetch --root {file}", "{file} is a file; name a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_done(words, sentence, tmp_path, capsys):
    places = {"folder": tmp_path, "file": tmp_path / "a-file"}
    places["file"].touch()
    assert sentence.format(**places) in error_of(words.format(**places).split(), capsys)


@pytest.mark.parametrize(
    "words",
    [
        "explain {image} --model hf --out {image}",
        "explain {image} --model hf --out {linked}",
        "caption other.png {image} --model hf --out {image}",
        "data preview {image} --model hf --out {image}",
    ],
)
def test_what_is_read_is_never_written_over(words, tmp_path, capsys):
    """Nor under another name of it."""
    image, linked = tmp_path / "photo.png", tmp_path / "link.png"
    image.write_bytes(b"an image")
    linked.symlink_to(image)
    error = error_of(words.format(image=image, linked=linked).split(), capsys)
    assert f"--out {linked if 'link' in words else image} is what is read; name another file" in error
    assert image.read_bytes() == b"an image"


ACTING = "\x1b[31mred\rback\nline\u202efdp"


@pytest.mark.parametrize(
    "words",
    [
        ["caption", "--model", "hf", f"{ACTING}.jpg"],
        ["caption", "--model", ACTING, str(SAMPLES / "fox.jpg")],
        ["data", "verify", ACTING],
        ["report", ACTING],
        ["fit", "--config", ACTING],
        ["checkpoint", "verify", ACTING],
        ["tokenizer", "train", ACTING, "--vocab-size", "300", "--output", "out"],
        ["image", "check", ACTING],
        ["verify-frozen", ACTING, "b"],
        [ACTING],
        ["caption", f"--{ACTING}"],
        ["explain", "a.jpg", "--model", "hf", "--out", ACTING],
    ],
)
def test_control_characters_of_names_never_reach_the_terminal(words, capsys):
    assert main(words) in (2, 3, 4)
    shown = capsys.readouterr()
    (line,) = (shown.err + shown.out).splitlines()
    assert all(character.isprintable() for character in line)
    assert r"\x1b[31mred\rback\nline\u202efdp" in line


def test_a_system_without_file_locks_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2
    assert capsys.readouterr().err == "arlow: this is neither Linux nor macOS (no fcntl); on Windows, use WSL\n"


def test_the_help_comes_in_less_than_a_second():
    """Of a core, without the seconds that libraries take to import; the best of three."""
    command = [sys.executable, Path(sysconfig.get_path("scripts"), "arlow"), "--help"]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1
