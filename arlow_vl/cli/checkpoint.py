"""`arlow checkpoint`: is a checkpoint whole?"""

import argparse
from pathlib import Path


def add_parser(subparsers) -> None:
    verbs = subparsers.add_parser("checkpoint", help="verify the checkpoints of a run").add_subparsers(required=True)
    verify = verbs.add_parser("verify", help="compare checkpoints with their SHA-256; exit 4 if one is damaged")
    verify.add_argument("path", type=Path, metavar="PATH", help="a checkpoint, a folder of checkpoints or a run folder")
    verify.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> int:
    from arlow_vl.errors import CheckpointError
    from arlow_vl.training.checkpoint_io import checkpoints, find_damage

    paths = [args.path]
    if args.path.is_dir():
        paths = checkpoints(args.path) or checkpoints(args.path / "checkpoints")
        if not paths:
            raise CheckpointError(f"{args.path} holds no checkpoint (step-*.ckpt)")
    damaged = [f"{path}: {damage}" for path in paths if (damage := find_damage(path))]
    print("\n".join(damaged) or "ok")
    return CheckpointError.exit_code if damaged else 0
