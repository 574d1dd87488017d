"""`arlow data preview`: writes a page of samples as the model sees them."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_file, positive_int
from arlow_vl.cli.source_options import add_source_options, indexes_with_progress
from arlow_vl.printing import number_of, print_line

EXAMPLE = "arlow data preview shards/ --model runs/first-light/vision/hf --out preview.html"


def add_parser(verbs: Parser) -> None:
    preview = verbs.add_command(
        "preview",
        "write a page of samples as the model sees them",
        EXAMPLE,
        description="Write one page without scripts that shows images as the encoder gets them, tokens with the "
        "trained ones coloured, and which tokens see which image.",
    )
    preview.add_argument("source", metavar="SOURCE", help="folder, file or glob; docs/formats.md lists the formats")
    preview.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="DIR",
        help="model folder, or a folder of a tokenizer and a processor",
    )
    preview.add_argument(
        "--out", "--output", type=output_file, required=True, metavar="FILE", help="page to write (.html)"
    )
    preview.add_argument(
        "--samples", type=positive_int, default=24, metavar="N", help="samples on the page (default: 24)"
    )
    preview.add_argument(
        "--max-length",
        type=positive_int,
        default=128,
        metavar="N",
        help="longest text, in tokens, as in a recipe (default: 128)",
    )
    add_source_options(preview)
    preview.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.data.preview.page import write_preview
    from arlow_vl.data.text_files import shown_source

    indexes = indexes_with_progress(args.source, args)
    how = {"title": shown_source(args.source), "samples": args.samples, "max_length": args.max_length}
    count = write_preview(indexes, args.model, args.out, **how)
    there = number_of(sum(map(len, indexes)), "sample")
    print_line(f"{args.out}: {count:,} of {there}, {args.out.stat().st_size / 2**20:.1f} MiB")
