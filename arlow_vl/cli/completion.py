"""`arlow completion`: a script with which a shell completes commands, options and their choices."""

import argparse
from collections.abc import Iterator

from arlow_vl.cli.parser import Parser

# Other words than options and commands are completed as files, which is the shell's default.
SCRIPT = """\
# Completion of the arlow command, written by `arlow completion {shell}`.
{begin}_arlow() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" place=arlow one
  local commands="" options="" words
  for one in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$place $one" in
      {places}) place="$place $one" ;;
    esac
  done
  case "$place" in
{lines}
  esac
  words="$commands"
  case "$word" in -*) words="$options" ;; esac
  case "$place $before" in
{choices}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _arlow arlow
"""
BEGIN = {"bash": "", "zsh": "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"}


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "completion",
        "print a script with which a shell completes this command",
        "arlow completion bash",
        "arlow completion zsh",
        description="Print a script with which a shell completes commands, options and their choices. For bash, write "
        "it to ~/.local/share/bash-completion/completions/arlow; for zsh, to a file that ~/.zshrc sources.",
    )
    parser.add_argument("shell", choices=tuple(BEGIN), help="shell that the script is for")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.cli import build_parser

    print(script(build_parser(), args.shell), end="")


def script(arlow: Parser, shell: str) -> str:
    parsers = list(parsers_below(arlow))
    lines = [
        f'    "{parser.prog}") commands="{" ".join(commands_of(parser))}" options="{" ".join(options_of(parser))}" ;;'
        for parser in parsers
    ]
    choices = [
        f"    {' | '.join(f'{chr(34)}{parser.prog} {name}{chr(34)}' for name in action.option_strings)}) words="
        f'"{" ".join(map(str, action.choices))}" ;;'
        for parser in parsers
        for action in parser._actions
        if action.option_strings and action.choices is not None
    ]
    return SCRIPT.format(
        shell=shell,
        begin=BEGIN[shell],
        places=" | ".join(f'"{parser.prog}"' for parser in parsers if parser is not arlow),
        lines="\n".join(lines),
        choices="\n".join(choices),
    )


def parsers_below(parser: Parser) -> Iterator[Parser]:
    """Yields this parser and those of all its commands."""
    yield parser
    for below in parser.commands.choices.values() if parser.commands else ():
        yield from parsers_below(below)


def commands_of(parser: Parser) -> list[str]:
    """Returns the commands, or the choices of positional arguments."""
    if parser.commands:
        return list(parser.commands.choices)
    given = [action for action in parser._actions if not action.option_strings and action.choices is not None]
    return [str(choice) for action in given for choice in action.choices or ()]


def options_of(parser: Parser) -> list[str]:
    names = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    return [name for name in names if parser._option_string_actions[name].help != argparse.SUPPRESS]
