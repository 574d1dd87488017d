"""`arlow verify-frozen`: checks that the text model inside a vision-language model is unchanged."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_file
from arlow_vl.printing import print_line


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "verify-frozen",
        "prove that a vision-language model writes text as before; exit 4 if it does not",
        "arlow verify-frozen runs/first-light/text/hf runs/first-light/vision/hf",
        "arlow verify-frozen runs/first-light/text/hf runs/first-light/vision/hf --text data/text/validation.jsonl",
    )
    parser.add_argument("text_checkpoint", type=Path, metavar="TEXT_CHECKPOINT", help="hf folder of the text run")
    parser.add_argument("checkpoint", type=Path, metavar="VL_CHECKPOINT", help="hf folder of the vision run")
    parser.add_argument(
        "--text", type=Path, metavar="DATA", help="held-out text, to compare bits per byte and every logit"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--output",
        type=output_file,
        metavar="FILE",
        help="write the findings as JSON; `arlow report RESULTS` shows RESULTS/frozen.json",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from arlow_vl.models.folder_files import refuse_missing_files

    for folder in (args.text_checkpoint, args.checkpoint):  # before anything is imported that takes seconds
        refuse_missing_files(folder)
    from arlow_vl.errors import CheckpointError
    from arlow_vl.evaluation.frozen import verify_frozen
    from vision.whole_files import write_whole

    checks = verify_frozen(args.text_checkpoint, args.checkpoint, text=args.text)
    failed = [check for check in checks if not check.holds]
    findings = json.dumps({"holds": not failed, "checks": [asdict(check) for check in checks]}, indent=2)
    if args.json:
        print(findings)
    else:
        for check in checks:
            print_line(f"{'ok' if check.holds else 'FAILED':8}{check.claim}: {check.found}")
    if args.output:
        write_whole(args.output, findings + "\n")
    if failed:
        raise CheckpointError(
            f"{args.checkpoint} does not hold the text model of {args.text_checkpoint} as it was, {len(failed)} of "
            f"{len(checks)} checks failed; the first: {failed[0].claim}: {failed[0].found}"
        )
