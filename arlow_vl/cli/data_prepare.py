"""`arlow data prepare`: writes the samples of any source as shards."""

import argparse
import re

from arlow_vl.cli.parser import Parser, output_folder, positive_int, share
from arlow_vl.cli.source_options import add_limit_option, add_source_options, indexes_with_progress
from arlow_vl.printing import number_of, print_line
from arlow_vl.stopping import AGAIN

EXAMPLE = "arlow data prepare photos/ --out shards"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
TOLD = 5


def add_parser(verbs: Parser) -> None:
    prepare = verbs.add_command(
        "prepare",
        "write the samples of a source as shards",
        EXAMPLE,
        "arlow data prepare questions.json --images photos/ --out shards --validation 0.02",
        description="Write the samples of a source as shards. Interrupted and run again, it keeps complete shards "
        "and resumes.",
    )
    prepare.add_argument("source", metavar="SOURCE", help="folder, file or glob; docs/formats.md lists the formats")
    prepare.add_argument("--out", "--output", type=output_folder, required=True, metavar="DIR", help="folder to fill")
    size = prepare.add_mutually_exclusive_group()
    size.add_argument(
        "--shard-size",
        type=byte_count,
        default=2**28,
        metavar="BYTES",
        help="largest size of a shard, such as 1GB (default: 256MiB)",
    )
    size.add_argument(
        "--samples-per-shard", type=positive_int, metavar="N", help="samples per shard, instead of a size"
    )
    prepare.add_argument(
        "--validation",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of the images to set aside as validation-*.tar; no image is in both parts (default: 0)",
    )
    add_source_options(prepare)
    add_limit_option(prepare)
    prepare.set_defaults(run=run, again=AGAIN)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.data.index.report import check_left_out, report_left_out
    from arlow_vl.data.prepare.plan import ShardSettings
    from arlow_vl.data.prepare.write import prepare
    from arlow_vl.data.text_files import shown_source
    from arlow_vl.progress import ProgressLine

    per_shard = args.samples_per_shard
    settings = ShardSettings(
        shard_size=2**40 if per_shard else args.shard_size, samples_per_shard=per_shard, validation=args.validation
    )
    indexes, where = indexes_with_progress(args.source, args), shown_source(args.source)
    if line := report_left_out(where, indexes):
        print_line(line)
    check_left_out(indexes, args.max_bad_fraction, where=where)
    made = prepare(indexes, args.out, settings, workers=args.workers, progress=ProgressLine("prepare", "samples"))
    kept = f", {made.kept:,} of them were there" if made.kept else ""
    apart = f", {made.validation:,} of the samples for validation" if args.validation else ""
    print_line(f"{args.out}: {number_of(made.samples, 'sample')} in {number_of(made.shards, 'shard')}{kept}{apart}")
    if made.too_large:
        named = ", ".join(made.too_large[:TOLD]) + (" ..." if len(made.too_large) > TOLD else "")
        print_line(f"in no shard, as texts are over 1 MiB: {number_of(len(made.too_large), 'sample')}: {named}")


def byte_count(text: str) -> int:
    """The type of options that are a size: `500000`, `256MiB`, `1GB`."""
    match = re.fullmatch(r"(\d+)\s*([kmg]i?)?b?", text.strip().lower())
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"is a number of bytes, as 256MiB or 1GB, got {text!r}")
    return int(match[1]) * UNITS[match[2] or ""]
