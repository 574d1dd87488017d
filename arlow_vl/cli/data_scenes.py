"""`arlow data scenes`: composes images of fetched drawings, with exact captions, questions and answers."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_folder, positive_int
from arlow_vl.printing import print_line
from arlow_vl.stopping import AGAIN

EXAMPLE = "arlow data scenes --root data --out data/scenes"


def add_parser(verbs: Parser) -> None:
    scenes = verbs.add_command(
        "scenes",
        "compose scenes of fetched drawings, with captions, questions and their exact truth",
        EXAMPLE,
        "arlow data scenes --root data --out scenes --train 100000 --workers 8",
        description="Compose scenes of fetched drawings; see docs/scenes.md. Interrupted and run again, it keeps "
        "complete shards and resumes.",
    )
    scenes.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder that `arlow data fetch` filled (default: data)",
    )
    scenes.add_argument("--out", "--output", type=output_folder, required=True, metavar="DIR", help="folder to fill")
    scenes.add_argument(
        "--train", type=positive_int, default=20_000, metavar="N", help="training images (default: 20000)"
    )
    scenes.add_argument(
        "--test", type=positive_int, default=1000, metavar="N", help="images of each other split (default: 1000)"
    )
    scenes.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed; another one gives other scenes (default: 0)"
    )
    scenes.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (default: 1)")
    scenes.set_defaults(run=run, again=AGAIN)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.data.fetch import require_extra
    from arlow_vl.data.scenes.drawings import read_drawings
    from arlow_vl.data.scenes.splits import SPLITS
    from arlow_vl.data.scenes.write import write_scenes
    from arlow_vl.progress import ProgressLine

    require_extra()
    drawings = read_drawings(args.root / "packages")
    sizes = {split: args.train if split == "train" else args.test for split in SPLITS}
    progress = ProgressLine("scenes", "images")
    made = write_scenes(drawings, args.out, sizes, seed=args.seed, workers=args.workers, progress=progress)
    print_line(f"{args.out}: " + ", ".join(f"{count:,} {split}" for split, count in made.items()))
    for split in sizes:
        if split not in made:
            print_line(f"{split} is left out: it needs stamps and clip art, which `arlow data fetch` gets with apt-get")
