"""`arlow checkpoint`: is a checkpoint whole? And the text model out of a vision-language one."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_folder
from arlow_vl.printing import print_line

VERIFY_EXAMPLE = "arlow checkpoint verify runs/first-light/vision"
EXPORT_EXAMPLE = "arlow checkpoint export-text runs/first-light/vision/hf text-model"


def add_parser(arlow: Parser) -> None:
    verbs = arlow.add_command("checkpoint", "verify and export checkpoints", VERIFY_EXAMPLE, EXPORT_EXAMPLE)
    verify = verbs.add_command(
        "verify", "compare checkpoints with their SHA-256; exit 4 if one is damaged", VERIFY_EXAMPLE
    )
    verify.add_argument("path", type=Path, metavar="PATH", help="a checkpoint, a folder of checkpoints or a run folder")
    verify.set_defaults(run=run_verify)
    export = verbs.add_command(
        "export-text", "take the text model and its tokenizer out of a vision-language one", EXPORT_EXAMPLE
    )
    export.add_argument("checkpoint", type=Path, metavar="VL_CHECKPOINT", help="model folder (hf/ of a vision run)")
    export.add_argument("output", type=output_folder, metavar="OUT_DIR", help="folder to write, which must not exist")
    export.set_defaults(run=run_export_text)


def run_verify(args: argparse.Namespace) -> int:
    from arlow_vl.errors import CheckpointError
    from arlow_vl.training.checkpoint_io import checkpoints, find_damage

    paths = [args.path]
    if args.path.is_dir():
        paths = checkpoints(args.path) or checkpoints(args.path / "checkpoints")
        if not paths:
            raise CheckpointError(f"{args.path} holds no checkpoint (step-*.ckpt)")
    damaged = [f"{path}: {damage}" for path in paths if (damage := find_damage(path))]
    for line in damaged or ["ok"]:
        print_line(line)
    return CheckpointError.exit_code if damaged else 0


def run_export_text(args: argparse.Namespace) -> None:
    from arlow_vl.models.folders import load_vision_language_model, save_folder

    if args.output.exists():
        raise ValueError(f"{args.output} exists already; name a new folder")
    model, processor = load_vision_language_model(args.checkpoint)
    save_folder((model.text_model(), processor.tokenizer), args.output)
    print_line(args.output)
