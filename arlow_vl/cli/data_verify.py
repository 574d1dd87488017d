"""`arlow data verify`: every bad sample of some sources, with its file, key and reason."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from arlow_vl.cli.data_index import DATA, LISTED, add_limit_option, add_source_options
from arlow_vl.cli.parser import Parser
from arlow_vl.printing import number_of, print_line
from arlow_vl.progress import Display

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
    for text in [json.dumps(report)] if args.json else told(found):
        print_line(text)
    if found.faults:
        faults = number_of(len(found.faults), "fault")
        print_line(f"arlow: {faults} in the files; copy or make them again before training", file=sys.stderr)
        return DATA
    try:
        found.check(args.max_bad_fraction)
    except DataError as error:
        print_line(f"arlow: {error}", file=sys.stderr)
        return DATA
    if not args.json:
        print_line("training may start" + (", and leaves out what was skipped" if found.bad else ""))
    return 0


def verified_samples(args: argparse.Namespace, how: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    from arlow_vl.data.verify import verify_sources

    found = verify_sources(args.sources, images=args.images, format=args.format, **how)
    return report_of(found), found


def verified_text(args: argparse.Namespace, how: dict[str, Any]) -> tuple[dict[str, Any], Any] | None:
    """Returns report and findings, None if the sources are not text. Raises DataError if only some are."""
    from arlow_vl.data.shards import counted
    from arlow_vl.data.verify_text import is_text, verify_text
    from arlow_vl.errors import DataError

    texts = [source for source in args.sources if is_text(source, args.format)]
    if not texts:
        return None
    if others := [source for source in args.sources if source not in texts]:
        raise DataError(f"{texts[0]} is text alone, and {others[0]} is not; verify them one after the other")
    found = verify_text(texts, **how)
    report = {
        "documents": found.documents,
        "skipped": dict(counted(found.bad)),
        "shard_faults": [asdict(fault) for fault in found.faults],
        "bad_samples": [bad._asdict() for bad in found.bad],
    }
    return report, found


def report_of(found: Any) -> dict[str, Any]:
    """Returns all findings for programs; docs/data.md explains each key."""
    return {
        "keys": found.keys,
        "skipped": dict(found.skipped),
        "shard_faults": [asdict(fault) for fault in found.faults],
        "bad_samples": [sample._asdict() for sample in found.bad],
        "questions": found.questions,
        "bad_questions": [question._asdict() for question in found.bad_questions],
        "texts": found.texts,
        "bad_texts": [text._asdict() for text in found.bad_texts],
        "ignored": dict(found.ignored),
        "members": found.members,
    }


def told(found: Any) -> Iterator[str]:
    """Yields the findings for people: counts, then a line for each fault and, up to a limit, each bad sample."""
    yield found.summary()
    samples, texts = len(getattr(found, "samples", [])), getattr(found, "texts", 0)
    if texts > samples > 0:
        them = "it" if samples == 1 else "them"
        yield f"{number_of(texts, 'text')} in {them}, each caption, question and conversation counted"
    for fault in found.faults:
        yield f"{fault.shard}: {fault.reason}"
    for bad in (getattr(found, name, []) for name in ("bad", "bad_questions", "bad_texts")):
        for sample in bad[:LISTED]:
            yield f"{sample.name}: {sample.reason}{sample.detail}"
        if len(bad) > LISTED:
            yield f"... and {len(bad) - LISTED:,} more; --json names them all"
    if any(getattr(found, name, []) for name in ("bad", "bad_questions", "bad_texts")):
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
