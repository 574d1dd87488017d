"""Writes a model folder with the checksums of its files, and finds what has changed there since."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from arlow_vl.errors import CheckpointError, ResourceError
from arlow_vl.locks import being_written, one_writer
from arlow_vl.models.arlow.checkpoint_checks import COPY_AGAIN, read_object
from arlow_vl.models.folder_files import refuse_working_folder
from vision.whole_files import put_in_place, sha256_of_file

CHECKSUMS = "checksums.json"
SETTINGS = ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer_config.json")
MOST_NAMED = 3
"""Most files that an error names."""


def save_folder(
    parts: Iterable[Any], folder: Path, *, shard_size: str | None = None, finish: Callable[[Path], Any] | None = None
) -> None:
    """Writes a model and what belongs to it, with the checksums of all files, whole or not at all.

    It is written under another name, forced onto the disk, and renamed. `parts` begin with the model, whose weights
    come in files of at most `shard_size` ("2GB"; None: transformers' own bound). `finish` is given the folder before it
    has its name: what it raises leaves nothing, and what it writes has no checksum.

    Raises:
        ValueError: the folder is the one that the process is in.
        DataError: another process writes the same folder.
        ResourceError: there is no room or no permission, or the folder is there; then nothing has the final name.
    """
    refuse_working_folder(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with one_writer(partial, is_folder=True, refusal=being_written(folder)):
            _save_in(partial, parts, folder, shard_size, finish)
    except OSError as error:
        if isinstance(error, ResourceError):
            raise
        raise _unsaved(folder, error) from error


def _save_in(
    partial: Path, parts: Iterable[Any], folder: Path, shard_size: str | None, finish: Callable[[Path], Any] | None
) -> None:
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise ResourceError(f"{folder} is there already and is not empty; name another folder")
        for left in partial.iterdir():  # by a killed process
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        model, *others = parts
        model.save_pretrained(partial, **({} if shard_size is None else {"max_shard_size": shard_size}))
        for part in others:
            part.save_pretrained(partial)
        checksums = {
            str(path.relative_to(partial)): {"sha256": sha256_of_file(path), "size": path.stat().st_size}
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        (partial / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n")
        for path in partial.rglob("*.safetensors"):  # safetensors writes files that only their owner can read
            with contextlib.suppress(OSError):  # a file system without modes, where all files have the same
                path.chmod((partial / CHECKSUMS).stat().st_mode)
        if finish:
            finish(partial)
        put_in_place(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # A full disk has an error of its own in safetensors, and in tokenizers a plain Exception.
        if isinstance(error, SafetensorError) or type(error) is Exception:
            raise _unsaved(folder, error) from error
        raise


def _unsaved(folder: Path, error: Exception) -> ResourceError:
    return ResourceError(f"cannot save {folder}: {error}; nothing was left there, so make room and repeat")


def refuse_changed_weights(folder: Path) -> None:
    """Raises CheckpointError where weights or tokenizer differ from what `save_folder` wrote.

    Training would not notice a wrong bit. Settings may be edited, and a folder without checksums is not checked.
    """
    if (folder / CHECKSUMS).is_file() and (changes := find_changes(folder, but=(*SETTINGS, CHECKSUMS))):
        raise CheckpointError(
            f"{'; '.join(changes[:MOST_NAMED])}; {COPY_AGAIN}, or remove {CHECKSUMS} if the change is meant"
        )


def find_changes(folder: Path, *, but: Iterable[str] = ()) -> list[str]:
    """Sentences on the files that are no longer what `save_folder` wrote; none: the folder is whole.

    Files named in `but` are not checked.

    Raises:
        CheckpointError: the folder has no checksums, or they are damaged.
    """
    if not (folder / CHECKSUMS).is_file():
        raise CheckpointError(
            f"{folder} has no {CHECKSUMS}, so nothing says what its files were; `arlow fit` and `arlow checkpoint "
            "export-text` write it"
        )
    changes = []
    for name, saved in read_object(folder / CHECKSUMS).items():
        if not isinstance(saved, dict) or not {"sha256", "size"} <= saved.keys() or ".." in Path(name).parts:
            raise CheckpointError(f"{folder / CHECKSUMS}: the entry of {name!r} is damaged; {COPY_AGAIN}")
        path = folder / name
        if name in but:
            continue
        if not path.is_file():
            changes.append(f"{path}: missing")
        elif path.stat().st_size != saved["size"]:
            changes.append(f"{path}: {path.stat().st_size:,} bytes, {saved['size']:,} were saved")
        elif sha256_of_file(path) != saved["sha256"]:
            changes.append(f"{path}: SHA-256 differs from what was saved")
    return changes
