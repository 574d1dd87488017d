"""`arlow completion`: bash, asked as it asks on the tab key, completes commands, options and choices."""

import shutil
import subprocess

import pytest

from arlow_vl.cli import build_parser, main
from arlow_vl.cli.completion import parsers_below

ASK = 'source {script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _arlow; echo "${{COMPREPLY[@]}}"'


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "arlow"
    with pytest.MonkeyPatch.context() as patch:
        import io
        import sys

        patch.setattr(sys, "stdout", io.StringIO())
        assert main(["completion", "bash"]) == 0
        path.write_text(sys.stdout.getvalue())

    def ask(words):
        command = ASK.format(script=path, words=words)
        run = subprocess.run([shutil.which("bash"), "-uc", command], capture_output=True, text=True, check=True)
        assert not run.stderr
        return run.stdout.split()

    return ask


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("arlow capt", ["caption"]),
        ("arlow verify-", ["verify-frozen", "verify-heat"]),
        ("arlow data pre", ["prepare", "preview"]),
        ("arlow caption --prec", ["--precision"]),
        ("arlow caption photo.jpg --precision b", ["bfloat16"]),
        ("arlow --debug data verify --for", ["--format"]),
        ("arlow completion z", ["zsh"]),
        ("arlow caption pho", []),  # then the shell completes files
        ("arlow caption --model runs/", []),
    ],
)
def test_a_word_is_completed(complete, words, found):
    assert complete(words) == found


def test_every_command_and_every_option_is_known(complete):
    parser = build_parser()
    assert complete("arlow ''") == list(parser.commands.choices)
    for one in parsers_below(parser):
        options = {name for action in one._actions for name in action.option_strings if name.startswith("--")}
        assert set(complete(f"{one.prog} -")) == options


def test_zsh_gets_the_same_function(capsys):
    scripts = []
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        scripts.append(capsys.readouterr().out.partition("_arlow()"))
    assert scripts[0][1:] == scripts[1][1:] and "bashcompinit" in scripts[1][0]
