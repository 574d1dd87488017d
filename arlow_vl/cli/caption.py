"""`arlow caption`: write what images show, or answer a question about each of them."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from arlow_vl.cli.exit_status import DATA
from arlow_vl.cli.model_options import OPTIONS, add_decoding_options, add_model_options, decoding_of, open_assistant
from arlow_vl.cli.parser import Parser, output_file, positive_int, some_text
from arlow_vl.printing import number_of, print_line
from arlow_vl.progress import ProgressLine
from arlow_vl.stopping import AGAIN, note_when_stopped

if TYPE_CHECKING:
    from arlow_vl.serving.decoding import Decoding

ASKED = ("model", "precision", "question", "seed", "stop")
"""Settings of an answer file whose options have the same names."""


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "caption",
        "caption images, or answer a question about each of them",
        "arlow caption --model runs/first-light/vision/hf photo.jpg drawing.png",
        "arlow caption --model runs/first-light/vision/hf photos/ 'scans/**/*.png' --out captions.jsonl",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders with all below them, and globs in quotes"
    )
    add_model_options(parser, model="model folder (hf/ of a vision run)")
    parser.add_argument(
        "--out",
        "--output",
        type=output_file,
        metavar="FILE",
        help="write JSON lines to this file, one per image; run again, it resumes where it stopped",
    )
    parser.add_argument(
        "--question", type=some_text, metavar="TEXT", help="question to ask about each image instead of captioning it"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=32, metavar="N", help="images per batch (default: 32)"
    )
    add_decoding_options(parser, max_new_tokens=32)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from arlow_vl.models.folder_files import refuse_text_model
    from arlow_vl.serving.image_files import find_images

    decoding, found, faults = decoding_of(args), find_images(args.images), Faults()
    if found.others:
        note = f"{number_of(found.others, 'file')} beside the images left out, as no image"
        print_line(f"arlow: {note}", file=sys.stderr)
    named = found.paths if args.out is None else list(dict.fromkeys(found.paths))  # a file has one line per image
    paths = faults.from_the_first_good(named)  # before any weight is read
    if not paths:
        return DATA
    refuse_text_model(args.model)
    if args.out is None:
        print_captions(args, decoding, paths, faults)
    else:
        write_captions(args, decoding, paths, faults)
    if faults.count and len(named) > 1:
        note = f"{faults.count:,} of {number_of(len(named), 'image')} could not be read and have no caption"
        print_line(f"arlow: {note}", file=sys.stderr)
    return DATA if faults.count else 0


class Faults:
    """Reports and counts images that cannot be read."""

    def __init__(self) -> None:
        self.count = 0

    def report_failure(self, path: str, error: Exception) -> None:
        from arlow_vl.serving.image_files import sentence_of

        self.count += 1
        if sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)  # clears the progress line
        print_line(f"arlow: {sentence_of(path, error)}", file=sys.stderr)

    def from_the_first_good(self, paths: Sequence[str]) -> Sequence[str]:
        """Returns the paths from the first readable image on."""
        from arlow_vl.serving.image_files import UNREADABLE
        from vision.decoding.sources import path_if_there, read_image

        for place, path in enumerate(paths):
            try:
                read_image(path_if_there(path))
                return paths[place:]
            except UNREADABLE as error:
                self.report_failure(path, error)
        return []


def batches(args: argparse.Namespace, decoding: "Decoding", paths: Sequence[str], faults: Faults) -> Iterator[Any]:
    """Yields batches of (path, answer)."""
    from arlow_vl.errors import ResourceError, is_out_of_memory
    from arlow_vl.serving.captioning import answer_images

    assistant = open_assistant(args, needs_images=True)
    how: dict[str, Any] = {"batch_size": args.batch_size, "on_fault": faults.report_failure}
    try:
        yield from answer_images(assistant, paths, args.question, decoding, **how)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "give a smaller --batch-size" if args.batch_size > 1 else "give --precision bfloat16 or --device cpu"
        raise ResourceError(
            f"the device has not enough memory for {args.batch_size} images at once; {advice}"
        ) from None


def print_captions(args: argparse.Namespace, decoding: "Decoding", paths: Sequence[str], faults: Faults) -> None:
    from arlow_vl.serving.captioning import one_line

    done = 0
    of_all = f"of {number_of(len(paths), 'image')}; with --out FILE {AGAIN}"
    with note_when_stopped(lambda: f"done with {done:,} {of_all}"):
        for batch in batches(args, decoding, paths, faults):
            for path, written in batch:
                print_line(f"{path}: {one_line(written)}")
                done += 1


def write_captions(args: argparse.Namespace, decoding: "Decoding", paths: Sequence[str], faults: Faults) -> None:
    from arlow_vl.serving.answer_file import AnswerFile, left_to_do
    from arlow_vl.serving.captioning import as_line, asked_as

    asked = asked_as(args.model, args.question, decoding, args.precision)
    with AnswerFile(args.out, asked, {name: f"--{name}" for name in ASKED} | OPTIONS) as file:
        to_do, line, done = left_to_do(paths, file.done), ProgressLine("captions", "images"), 0
        with note_when_stopped(lambda: f"{args.out} holds {number_of(len(file.done), 'image')}, and {AGAIN}"):
            for batch in batches(args, decoding, to_do, faults) if to_do else ():
                file.add(as_line(path, args.question, written) for path, written in batch)
                done += len(batch)
                if done < len(to_do):
                    line(done, len(to_do))
        if to_do:
            line(len(to_do), len(to_do))
        print_line(f"{args.out}: {number_of(len(file.done), 'image')}")
