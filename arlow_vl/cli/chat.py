"""`arlow chat`: a conversation with a model in a terminal, with images, its tokens shown as they come."""

import argparse
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from arlow_vl.cli.model_options import add_decoding_options, add_model_options, decoding_of, open_assistant
from arlow_vl.cli.parser import Parser
from arlow_vl.printing import print_line, print_piece

if TYPE_CHECKING:
    from arlow_vl.serving.conversation import Conversation

COMMANDS = """\
/image PATH  show an image with the next turn; an empty turn then asks for a caption
/reset       start over
/quit        end (so does Ctrl-D); Ctrl-C stops an answer"""


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "chat",
        "talk with a model in a terminal, about images too",
        "arlow chat --model runs/first-light/vision/hf photo.jpg",
        "arlow chat --model runs/smollm2 --temperature 0.7 --max-new-tokens 400",
        description=f"Talk with a model in a terminal. Within the chat:\n\n{COMMANDS}",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files that the first turn shows")
    add_model_options(parser, model="folder of a text or vision-language model (hf/ of a run)")
    add_decoding_options(parser, max_new_tokens=256)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.models.folder_files import refuse_missing_files
    from vision.decoding.sources import path_if_there, read_image

    decoding = decoding_of(args)
    for path in args.images:  # before any weight is read
        read_image(path_if_there(path))
    refuse_missing_files(args.model)

    from arlow_vl.serving.conversation import Conversation  # loads torch, which takes seconds

    conversation = Conversation(open_assistant(args), decoding)
    for path in args.images:
        conversation.show(path)
    if sys.stdin.isatty():
        print(COMMANDS)
    for line in turns():
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return
        try:
            if word == "/reset":
                conversation.reset()
            elif word == "/image":
                show(conversation, rest.strip())
            elif word == "/help":
                print(COMMANDS)
            elif word.startswith("/") and "/" not in word[1:]:
                raise ValueError(f"there is no {word}; /help lists what there is")
            elif line or conversation.waiting:
                say(conversation, line)
        except (ValueError, OSError) as error:
            if hasattr(error, "exit_code"):  # an error of the model, not of a turn
                raise
            print_line(f"arlow: {error}", file=sys.stderr)


def turns() -> Iterator[str]:
    """Yields lines without surrounding space, from a terminal or a pipe, until the end of the input.

    Lines of a pipe are printed, so that the output reads as the conversation that a terminal would show.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused by itself
    if not sys.stdin.isatty():
        for line in map(str.strip, sys.stdin):
            print_line(f"> {line}".rstrip())
            yield line
        return
    import readline  # noqa: F401, lets a person edit lines and get earlier ones back

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit ends the chat")


def show(conversation: "Conversation", path: str) -> None:
    if not path:
        raise ValueError("/image needs the path of an image file")
    conversation.show(path)
    print_line(f"{path}: shown with the next turn")


def say(conversation: "Conversation", text: str) -> None:
    """Prints an answer as it comes; Ctrl-C stops it. Raises ValueError for a text that is not UTF-8."""
    if not text.isascii() and any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise ValueError("the line is not UTF-8; write it again")
    pieces = conversation.answer(text)
    try:
        for piece in pieces:
            print_piece(piece)
    except KeyboardInterrupt:
        pieces.close()
        print_piece(" ...")
    print()
