"""Pages of the site that are made when it is built."""

import argparse
from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File, Files

from arlow_vl.cli import build_parser
from arlow_vl.cli.parser import Parser


def on_files(files: Files, config: Any) -> Files:
    """Adds docs/commands.md."""
    files.append(File.generated(config, "docs/commands.md", content="\n".join(commands())))
    return files


def commands() -> Iterator[str]:
    """What the help of every command says."""
    yield "# Commands\n"
    for parser in walk(build_parser()):
        yield f"## `{parser.prog}`\n\n```text\n{parser.format_help()}```\n"


def walk(parser: Parser) -> Iterator[Parser]:
    """A parser and those of the commands below it."""
    yield parser
    if isinstance(parser.commands, argparse._SubParsersAction):
        for below in parser.commands.choices.values():
            yield from walk(below)
