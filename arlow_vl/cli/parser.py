"""The parser of every command: its help ends with examples, and its errors are one sentence with a suggestion."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from arlow_vl.models.arlow.spelling import did_you_mean


class UsageError(ValueError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, except for three things.

    - `examples` are command lines that stand below the help.
    - An error is raised as UsageError instead of ending the process, so that `main` prints it like any other.
    - A misspelt option or command is named before anything else, with the closest one that exists.
    """

    def __init__(self, *, examples: Sequence[str] = (), **settings: Any) -> None:
        epilog = "\n  ".join(["examples:", *examples]) if examples else None
        super().__init__(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.examples = tuple(examples)
        self.commands: Any = None  # argparse's action that holds the commands below this one
        self._words: list[str] = []

    def add_command(self, name: str, summary: str, *examples: str, **settings: Any) -> "Parser":
        """Adds a command below this one; `summary` is its line in the help of this one and heads its own."""
        if self.commands is None:
            self.commands = self.add_subparsers(dest="command", required=True, metavar="COMMAND")
        settings.setdefault("description", f"{summary[0].upper()}{summary[1:]}.")
        return self.commands.add_parser(name, help=summary, examples=examples, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses like argparse, but unknown words are refused by the command that they were meant for.

        Where a command is expected and no word is given, prints the help and exits with status 2.
        """
        self._words = list(args)
        if not self._words and self.commands is not None:
            self.print_help(sys.stderr)
            self.exit(2)
        if self.commands is not None and self._misspelt():
            self.error("")  # before the command that follows looks at its own words
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        self._refuse_own_input(known)
        return known, unknown

    def _refuse_own_input(self, known: argparse.Namespace) -> None:
        """Raises UsageError if a file to write is also read, as it would be lost."""
        for writes in (action for action in self._actions if action.type is output_file):
            out = getattr(known, writes.dest)
            if out is None or not out.is_file():
                continue
            for reads in (action for action in self._actions if action is not writes):
                given = getattr(known, reads.dest, None)
                for value in given if isinstance(given, list) else [given]:
                    is_path = isinstance(value, Path) or (isinstance(value, str) and not reads.option_strings)
                    if is_path and os.path.exists(value) and out.samefile(value):
                        raise UsageError(f"{writes.option_strings[0]} {out} is what is read; name another file")

    def error(self, message: str) -> NoReturn:
        """Raises UsageError. A misspelt option explains what argparse finds missing, so it is named instead."""
        if misspelt := self._misspelt():
            message = f"unknown option {misspelt}; {did_you_mean(misspelt, self._option_string_actions)}"
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _misspelt(self) -> str | None:
        return next((word for word in self._option_words() if not self._is_known(word)), None)

    def _option_words(self) -> Iterable[str]:
        """Yields the words that argparse takes for options of this command, without their values."""
        for word in self._words:
            is_option = len(word) > 1 and word.startswith("-") and " " not in word
            if word == "--" or (self.commands is not None and not is_option):
                return  # what follows is text, or belongs to the command that was just named
            if is_option and not self._negative_number_matcher.match(word):
                yield word.partition("=")[0]

    def _is_known(self, word: str) -> bool:
        """Returns True for an option, the beginning of one, or a short one with its value."""
        names = self._option_string_actions
        return any(name.startswith(word) for name in names) or (word[1] != "-" and word[:2] in names)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = f"; {did_you_mean(value, map(str, action.choices))}"
            if action is self.commands:
                raise argparse.ArgumentError(None, f"unknown command {value}{hint}")
            raise argparse.ArgumentError(action, f"cannot be {value}{hint}")


def positive_int(text: str) -> int:
    """The type of options that count something."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


def share(text: str) -> float:
    """The type of options that are a part of a whole."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"is a share from 0 to 1, got {text!r}")
    return number


def some_text(text: str) -> str:
    """The type of options that hold words."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give some text or leave the option out")
    return any_text(text)


def any_text(text: str) -> str:
    """The type of texts that a model reads or writes, which may be empty."""
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 come as lone surrogates
        raise argparse.ArgumentTypeError("is not UTF-8; give text in UTF-8") from None
    return text


def output_file(text: str) -> Path:
    """The type of a file to write; missing folders are created when it is written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; name a file")
    check_parents(path)
    return path


def output_folder(text: str) -> Path:
    """The type of a folder to write into, which is created if it is missing."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a file; name a folder")
    check_parents(path)
    return path


def check_parents(path: Path) -> None:
    """Raises ArgumentTypeError for a path that leads through a file."""
    file = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if file is not None:
        raise argparse.ArgumentTypeError(f"{path} cannot be made, as {file} is a file; name another place")
