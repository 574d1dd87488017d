"""`arlow checkpoint`: verifies checkpoints, and exports models out of them."""

import argparse
import re
from pathlib import Path

from arlow_vl.cli.parser import Parser, output_folder
from arlow_vl.printing import number_of, print_line

VERIFY_EXAMPLE = "arlow checkpoint verify runs/first-light/vision"
EXPORT_RUN_EXAMPLE = "arlow checkpoint export runs/first-light/vision --out model"
EXPORT_EXAMPLE = "arlow checkpoint export-text runs/first-light/vision/hf text-model"


def add_parser(arlow: Parser) -> None:
    verbs = arlow.add_command("checkpoint", "verify and export checkpoints", VERIFY_EXAMPLE, EXPORT_EXAMPLE)
    verify = verbs.add_command(
        "verify", "check checkpoints and model folders against their SHA-256; exit 4 if one is damaged", VERIFY_EXAMPLE
    )
    verify.add_argument(
        "path", type=Path, metavar="PATH", help="a checkpoint, a folder of them, a model folder or a run folder"
    )
    verify.set_defaults(run=run_verify)
    whole = verbs.add_command(
        "export",
        "make a model folder with a card, and prove it by loading it in a fresh process",
        EXPORT_RUN_EXAMPLE,
        "arlow checkpoint export runs/first-light/vision/hf --out int8 --quantize int8 --text held-out.jsonl",
    )
    whole.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="a run folder, one of its checkpoints (of one process or of many), or hf",
    )
    whole.add_argument(
        "--out",
        "--output",
        type=output_folder,
        required=True,
        metavar="DIR",
        help="folder to write, which must not exist",
    )
    whole.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), help="dtype of the weights (default: their own)"
    )
    whole.add_argument("--quantize", choices=("int8", "nf4"), help="quantize the decoder's linear layers")
    whole.add_argument(
        "--text", metavar="SOURCE", help="documents on which bits per byte are measured before and after"
    )
    whole.add_argument(
        "--shard-size", type=file_size, metavar="SIZE", help="largest size of a weight file, such as 2GB"
    )
    whole.add_argument(
        "--scores",
        type=Path,
        metavar="RESULTS",
        help="result folder of `arlow evaluate`, for scores and controls on the card",
    )
    whole.add_argument(
        "--license",
        default="",
        metavar="NAME",
        help="license on the card, as the hub names it: apache-2.0 (default: none)",
    )
    whole.add_argument("--push", metavar="REPO", help="upload the folder to the hub, as name or organisation/name")
    whole.set_defaults(run=run_export)
    export = verbs.add_command(
        "export-text", "take the text model and its tokenizer out of a vision-language one", EXPORT_EXAMPLE
    )
    export.add_argument("checkpoint", type=Path, metavar="VL_CHECKPOINT", help="model folder (hf/ of a vision run)")
    export.add_argument("output", type=output_folder, metavar="OUT_DIR", help="folder to write, which must not exist")
    export.set_defaults(run=run_export_text)


def file_size(text: str) -> str:
    """The type of a size as transformers writes it, such as 2GB."""
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"is a whole number of KB, MB, GB or TB, as 2GB, got {text!r}")
    return text


def run_verify(args: argparse.Namespace) -> None:
    from arlow_vl.errors import CheckpointError
    from arlow_vl.models.folder_writing import CHECKSUMS, find_changes
    from arlow_vl.training.checkpoint_io import find_damage
    from arlow_vl.training.checkpoint_names import checkpoints

    if not args.path.exists():
        raise CheckpointError(f"{args.path}: no such file or folder; name a run folder, a checkpoint or a model folder")
    products = [args.path] if any((args.path / name).is_file() for name in (CHECKSUMS, "config.json")) else []
    products += [folder for folder in (args.path / "hf", args.path / "best") if folder.is_dir()]  # of a run
    paths = [args.path]
    if args.path.is_dir() and not args.path.name.endswith(".ckpt"):
        paths = checkpoints(args.path) or checkpoints(args.path / "checkpoints")
        if not paths and not products:
            raise CheckpointError(f"{args.path} holds no checkpoint (step-*.ckpt) and no model folder (hf, best)")
    damaged = [f"{path}: {damage}" for path in paths if (damage := find_damage(path))]
    damaged += [change for folder in products for change in find_changes(folder)]
    for line in damaged or ["ok"]:
        print_line(line)
    if damaged:
        faults = number_of(len(damaged), "fault")
        raise CheckpointError(f"{args.path}: {faults} in the files; copy or make them again before they are used")


def run_export(args: argparse.Namespace) -> None:
    from arlow_vl.training.export import Wishes, export

    if args.out.exists() or args.out.name == "..":
        raise ValueError(f"{args.out} exists already; name a new folder")
    if (args.path / "config.json").is_file() and args.path.resolve() in args.out.resolve().parents:
        raise ValueError(f"{args.out} lies in the model that is exported; name a folder beside it")
    wishes = Wishes(
        precision=args.precision,
        quantise=args.quantize,
        shard_size=args.shard_size,
        results=args.scores,
        license=args.license,
        text=args.text,
    )
    for line in export(args.path, args.out, wishes):
        print_line(line)
    if args.push:
        push(args.out, args.push)


def push(folder: Path, repository: str) -> None:
    """Uploads a folder to the hub. Raises ValueError if it refuses or cannot be reached; the folder stays."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # errors of the hub's client, of its HTTP library, or of the system
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} is written, but was not put on the hub: {reason:.300}") from error
    print_line(f"https://huggingface.co/{repository}")


def run_export_text(args: argparse.Namespace) -> None:
    from arlow_vl.models.folder_writing import save_folder
    from arlow_vl.models.folders import load_vision_language_model

    if args.output.exists():
        raise ValueError(f"{args.output} exists already; name a new folder")
    model, processor = load_vision_language_model(args.checkpoint, may_be_quantised=False)
    tokenizer = processor.tokenizer
    tokenizer._set_processor_class(None)  # the text model has no processor
    tokenizer.init_kwargs.pop("processor_class", None)
    save_folder((model.text_model(), tokenizer), args.output)
    print_line(args.output)
