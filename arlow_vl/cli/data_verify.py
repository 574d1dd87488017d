"""`arlow data verify`: every bad sample of some sources, with its file, key and reason."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from arlow_vl.cli.exit_status import DATA
from arlow_vl.cli.parser import Parser
from arlow_vl.cli.source_options import LISTED, add_limit_option, add_source_options
from arlow_vl.printing import number_of, print_line
from arlow_vl.progress import Display

if TYPE_CHECKING:
    from arlow_vl.data.verify import Verified

EXAMPLE = "arlow data verify data/captions/train-000000.tar"


def add_parser(verbs: Parser) -> None:
    verify = verbs.add_command(
        "verify",
        "read sources as training would, decode every image and say what is unusable",
        EXAMPLE,
        "arlow data verify corpus.parquet --format text",
        description="Read sources as training would and decode every image. Exits with "
        "0 if training may start, with 3 if a file is damaged or too much is unusable.",
    )
    verify.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="folder, file or glob; docs/formats.md lists the formats"
    )
    add_source_options(verify)
    verify.add_argument("--json", action="store_true", help="print one JSON object that names every bad sample")
    add_limit_option(verify)
    verify.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from arlow_vl.errors import DataError

    line = VerifyProgress()
    how: dict[str, Any] = {"workers": args.workers} | ({} if args.json else {"progress": line})
    report, found = verified_text(args, how) or verified_samples(args, how)
    line.clear()
    for text in [json.dumps(report)] if args.json else report_lines(found):
        print_line(text)
    if found.tally.faults:
        faults = number_of(len(found.tally.faults), "fault")
        print_line(f"arlow: {faults} in the files; copy or make them again before training", file=sys.stderr)
        return DATA
    try:
        found.check(args.max_bad_fraction)
    except DataError as error:
        print_line(f"arlow: {error}", file=sys.stderr)
        return DATA
    if not args.json:
        print_line("training may start" + (", and leaves out what was skipped" if found.tally.bad else ""))
    return 0


def verified_samples(args: argparse.Namespace, how: dict[str, Any]) -> tuple[dict[str, Any], "Verified"]:
    from arlow_vl.data.verify import verify_sources

    found = verify_sources(args.sources, images=args.images, format=args.format, **how)
    return report_of(found), found


def verified_text(args: argparse.Namespace, how: dict[str, Any]) -> "tuple[dict[str, Any], Verified] | None":
    """Returns report and findings, None if the sources are not text. Raises DataError if only some are."""
    from arlow_vl.data.text_files import shown_source
    from arlow_vl.data.verify_text import is_text, verify_text
    from arlow_vl.errors import DataError

    texts = [source for source in args.sources if is_text(source, args.format)]
    if not texts:
        return None
    if others := [source for source in args.sources if source not in texts]:
        text, other = shown_source(texts[0]), shown_source(others[0])
        raise DataError(f"{text} is text alone, and {other} is not; verify them one after the other")
    found = verify_text(texts, **how)
    report = {
        "documents": found.tally.samples,
        "skipped": dict(found.tally.skipped),
        "shard_faults": [asdict(fault) for fault in found.tally.faults],
        "bad_samples": [bad._asdict() for bad in found.tally.bad],
    }
    return report, found


def report_of(found: "Verified") -> dict[str, Any]:
    """Returns all findings for programs; docs/data.md explains each key."""
    tally = found.tally
    return {
        "keys": found.keys,
        "skipped": dict(tally.skipped),
        "shard_faults": [asdict(fault) for fault in tally.faults],
        "bad_samples": [sample._asdict() for sample in tally.bad],
        "questions": tally.questions,
        "bad_questions": [question._asdict() for question in tally.bad_questions],
        "texts": tally.texts,
        "bad_texts": [text._asdict() for text in tally.other_bad_texts],
        "ignored": dict(tally.ignored),
        "members": found.members,
    }


def report_lines(found: "Verified") -> Iterator[str]:
    """Yields the findings for people: counts, then a line for each fault and, up to a limit, each bad sample."""
    tally = found.tally
    yield tally.summary()
    if tally.texts > tally.samples > 0:
        them = "it" if tally.samples == 1 else "them"
        yield f"{number_of(tally.texts, 'text')} in {them}, each caption, question and conversation counted"
    for fault in tally.faults:
        yield f"{fault.shard}: {fault.reason}"
    for bad in (tally.bad, tally.bad_questions, tally.other_bad_texts):
        for sample in bad[:LISTED]:
            yield f"{sample.name}: {sample.reason}{sample.detail}"
        if len(bad) > LISTED:
            yield f"... and {len(bad) - LISTED:,} more; --json names them all"
    if tally.bad or tally.bad_texts:
        yield "docs/data.md and docs/formats.md say what each reason means"


class VerifyProgress:
    """`verify: 3 of 40 files, 3,000 samples, 840 samples/s`, shown if it takes long."""

    def __init__(self) -> None:
        self.display = Display()
        self.began = time.monotonic()
        self.is_shown = False

    def __call__(self, samples: int, ready: int, files: int) -> None:
        if self.display.is_due:
            rate = samples / max(time.monotonic() - self.began, 1e-9)
            done = f"{ready:,} of {number_of(files, 'file')}, {number_of(samples, 'sample')}"
            self.display.show(f"verify: {done}, {rate:,.0f} samples/s")
            self.is_shown = True

    def clear(self) -> None:
        """Clears the progress line of a terminal."""
        if self.is_shown and self.display.on_terminal:
            self.display.show("")
