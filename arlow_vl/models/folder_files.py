"""Checks that the files of a model folder are there, and their hashes.

Importing this is fast, so a command can refuse a wrong folder before it loads the libraries that open a right one.
"""

import hashlib
import json
from pathlib import Path

from arlow_vl.errors import CheckpointError
from arlow_vl.printing import visible
from vision.whole_files import sha256_of_file

NEEDED = ("config.json", "model.safetensors")
"""Files that a model folder must hold; either may be an index of several files instead."""
DECIDING = (".safetensors", ".json", ".jinja")
"""Suffixes of the files that decide what a model answers."""
NOT_DECIDING = ("checksums.json", "trained_prompts.json")


def refuse_missing_files(folder: Path) -> None:
    """Raises CheckpointError where there is no model folder, or one without settings or weights."""
    for name in NEEDED:
        if not (folder / name).is_file() and not (folder / f"{name}.index.json").is_file():
            there = folder / "hf" if (folder / "hf" / name).is_file() else "the hf folder of a finished run"
            raise CheckpointError(
                f"{visible(str(folder))} holds no {name}; name {visible(str(there))} (see `arlow fit`)"
            )


def refuse_other_kind(folder: Path, found: object, expected: str) -> None:
    """Raises CheckpointError where `found`, the model type that a folder names, is not the expected one."""
    if found == expected:
        return
    kinds = {
        "arlow": "a text model sees no images; name the hf folder of a vision run",
        "arlow_vl": "with an encoder; see `checkpoint`",
    }
    hint = f" ({kinds[found]})" if isinstance(found, str) and found in kinds else ""
    raise CheckpointError(f"{folder} holds a model of type {found!r}, expected {expected!r}{hint}")


def refuse_text_model(folder: Path) -> None:
    """Raises CheckpointError as `refuse_missing_files`, and where config.json is that of a text model."""
    refuse_missing_files(folder)
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # whoever opens the folder reports it
    if isinstance(config, dict) and config.get("model_type") == "arlow":
        refuse_other_kind(folder, "arlow", "arlow_vl")


def refuse_working_folder(out: Path) -> None:
    """Raises ValueError for the working directory: a new folder would take its place, and the shell stay in the old."""
    if out.exists() and out.samefile("."):
        raise ValueError(f"{out} is the working directory, which the new folder would replace; name a new folder")


def refuse_full_folder(out: Path) -> None:
    """Raises ValueError for a place where something lies already, or the working directory."""
    refuse_working_folder(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists already and is not empty; name a new folder")


def hash_model(folder: Path) -> str:
    """SHA-256 of the names and bytes of all files that decide what a model answers."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in DECIDING and path.name not in NOT_DECIDING]
    lines = "".join(f"{sha256_of_file(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()
