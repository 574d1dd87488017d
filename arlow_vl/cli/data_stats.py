"""`arlow data stats`: counts what a source holds."""

import argparse
import json

from arlow_vl.cli.parser import Parser
from arlow_vl.cli.source_options import add_source_options, indexes_with_progress
from arlow_vl.printing import print_line

EXAMPLE = "arlow data stats shards/"


def add_parser(verbs: Parser) -> None:
    stats = verbs.add_command(
        "stats", "count samples, images, texts, lengths and sizes of a source", EXAMPLE, f"{EXAMPLE} --json"
    )
    stats.add_argument("source", metavar="SOURCE", help="folder, file or glob; docs/formats.md lists the formats")
    add_source_options(stats)
    stats.add_argument("--json", action="store_true", help="print one JSON object")
    stats.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.data.stats import format_stats, stats_of

    stats = stats_of(indexes_with_progress(args.source, args, shows_progress=not args.json))
    for line in [json.dumps(stats)] if args.json else format_stats(stats):
        print_line(line)
