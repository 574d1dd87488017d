"""`arlow export`: writes the text part of a model for tools that do not know Arlow."""

import argparse
from pathlib import Path

from arlow_vl.cli.parser import Parser, check_parents
from arlow_vl.printing import print_line

DTYPES = ("float32", "float16", "bfloat16")


def add_parser(arlow: Parser) -> None:
    parser = arlow.add_command(
        "export",
        "write the text part of a model as a Llama folder or a GGUF file",
        "arlow export runs/first-light/vision/hf --as llama --out llama-model",
        "arlow export runs/first-light/text/hf --as gguf --dtype bfloat16 --out model.gguf",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder (hf/ of a text or vision run)")
    parser.add_argument(
        "--as", dest="form", choices=("llama", "gguf"), required=True, help="llama: a folder; gguf: a file"
    )
    parser.add_argument(
        "--out",
        "--output",
        type=new_path,
        required=True,
        metavar="PATH",
        help="folder or file to write, which must be new",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the tensors (default: the model's own)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from arlow_vl.models.folder_files import refuse_full_folder, refuse_missing_files

    if args.form == "gguf" and args.out.exists():
        raise ValueError(f"{args.out} exists already; name a new file")
    refuse_full_folder(args.out)
    refuse_missing_files(args.model)

    from arlow_vl.models.convert.exporting import export_llama  # loads torch, which takes seconds
    from arlow_vl.models.convert.gguf_writing import export_gguf

    export = export_llama if args.form == "llama" else export_gguf
    for line in export(args.model, args.out, dtype=args.dtype):
        print_line(line)


def new_path(text: str) -> Path:
    """The type of a path whose kind depends on another option."""
    path = Path(text)
    check_parents(path)
    return path
