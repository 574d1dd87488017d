"""`arlow data index`: writes the indexes of sources before a run."""

import argparse
import sys

from arlow_vl.cli.exit_status import DATA
from arlow_vl.cli.parser import Parser
from arlow_vl.cli.source_options import LISTED, add_limit_option, add_source_options, indexes_with_progress
from arlow_vl.printing import print_line
from arlow_vl.stopping import AGAIN

EXAMPLE = "arlow data index shards/"


def add_parser(verbs: Parser) -> None:
    index = verbs.add_command(
        "index",
        "write the indexes of sources beside them, so that a run starts at once",
        EXAMPLE,
        "arlow data index captions.json --images photos/",
        description="Write the indexes of sources beside them. Exits with 0 "
        "if training may start, with 3 if a file is damaged or too much is unusable.",
    )
    index.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="folder, file or glob; docs/formats.md lists the formats"
    )
    add_source_options(index)
    add_limit_option(index)
    index.set_defaults(run=run, again=AGAIN)


def run(args: argparse.Namespace) -> int:
    from arlow_vl.data.index.report import check_left_out, faults_of, report_lines
    from arlow_vl.data.text_files import shown_source
    from arlow_vl.errors import DataError

    status = 0
    for source in args.sources:
        indexes = indexes_with_progress(source, args, may_be_empty=True)
        for line in report_lines(indexes, LISTED):
            print_line(line)
        if faults_of(indexes):
            status = DATA
        try:
            check_left_out(indexes, args.max_bad_fraction, where=shown_source(source))
        except DataError as error:
            print_line(f"arlow: {error}", file=sys.stderr)
            status = DATA
    return status
