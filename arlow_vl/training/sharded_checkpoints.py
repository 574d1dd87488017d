"""Checkpoints as folders of torch.distributed.checkpoint, to which every process writes its shards.

    step-000100.ckpt/
        manifest.json       SHA-256 and size of every other file; written last
        run.ckpt            all else: loops, loader, settings, unsharded tensors (`checkpoint_file`)
        .metadata, *.distcp the sharded tensors, one file a process

The folder is written under another name and renamed, so it is whole or absent; all processes must see it. Any number of
processes can read it: a single one gets whole tensors, and a checkpoint of one process can be read as shards.
"""

import contextlib
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from arlow_vl.errors import ResourceError
from arlow_vl.training.checkpoint_file import first_line, write_checkpoint
from arlow_vl.training.checkpoint_names import PARTIAL, remove_older
from vision.whole_files import put_in_place, sha256_of_file

MANIFEST = "manifest.json"
REST = "run.ckpt"
PART = "a tensor in parts"
"""Key of the mapping that takes a sharded tensor's place in `run.ckpt`; its value is the tensor's name."""


class ShardedWriter:
    """Writer of checkpoints in a background thread, one at a time; every process has one."""

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo")  # its own, as training communicates meanwhile
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def begin(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Copies the tensors and starts writing. Raises the error of the previous checkpoint, as `wait` does."""
        self.wait()
        parts: dict[str, Tensor] = {}
        rest = _taken_apart(checkpoint, (), parts)
        self.thread = threading.Thread(target=self._write, args=(rest, parts, path), daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            ResourceError: it could not be written.
        """
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _write(self, rest: dict[str, Any], parts: dict[str, Tensor], path: Path) -> None:
        try:
            write_sharded(rest, parts, path, self.group)
            if dist.get_rank(self.group) == 0:
                remove_older(path.parent)
        except BaseException as error:  # raised by the next `wait`
            self.error = error


def write_sharded(rest: dict[str, Any], parts: dict[str, Tensor], path: Path, group: Any) -> None:
    """Writes `rest` and the sharded tensors `parts` to the folder `path`; all processes of the group must call it.

    Raises:
        ResourceError: it cannot be written; there is no folder `path` then.
    """
    partial = path.with_name(PARTIAL + path.name)
    rank = dist.get_rank(group)
    try:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier(group)
        writer = FileSystemWriter(partial, single_file_per_rank=True, sync_files=False)  # put_in_place syncs
        dcp.save(parts, storage_writer=writer, process_group=group)
        own = _facts_of(partial.glob(f"__{rank}_*.distcp"))
        found: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, own, group=group)
        if rank == 0:
            write_checkpoint(rest, partial / REST)
            facts = _facts_of([partial / ".metadata", partial / REST])
            for some in found:
                facts |= some
            (partial / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n")
            put_in_place(partial, path)
        dist.barrier(group)
    except (OSError, CheckpointException) as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        raise ResourceError(f"cannot save {path}: {_reason(error)}; checkpoints saved before are whole") from error


def _reason(error: OSError | CheckpointException) -> str:
    """Returns one line: the failure of the lowest rank, where torch would print the traceback of each."""
    if isinstance(error, CheckpointException):
        rank, (found, _) = min(error.failures.items())
        while first := found.__cause__ or found.__context__:  # torch's writer fails again as it is closed
            found = first
        return f"rank {rank}: {_reason(found)}" if isinstance(found, OSError) else f"rank {rank}: {first_line(found)}"
    return error.strerror or first_line(error)


def _facts_of(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    return {path.name: {"sha256": sha256_of_file(path), "size": path.stat().st_size} for path in paths}


def find_folder_damage(folder: Path) -> str | None:
    """Returns a description of the damage to a checkpoint folder; None if it is whole."""
    try:
        facts = json.loads((folder / MANIFEST).read_text())
        named = {name: (fact["size"], fact["sha256"]) for name, fact in facts.items()}
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error.strerror}"
    except (ValueError, AttributeError, KeyError, TypeError):
        return f"{MANIFEST} is not what was written"
    for name in (REST, ".metadata"):
        if name not in named:
            return f"{MANIFEST} does not name {name}"
    for name, (size, sha256) in named.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, {size:,} were written"
        if sha256_of_file(path) != sha256:
            return f"SHA-256 of {name} differs"
    return None


class Like:
    """Placement of a run's tensors on its devices, which the tensors of a checkpoint get when they are read."""

    def __init__(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self.tensors = dict(model.named_parameters(remove_duplicate=False))
        self.optimized = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]

    def __call__(self, path: tuple[Any, ...], shape: torch.Size) -> Tensor | None:
        """Returns the sharded parameter that the tensor at this path of a checkpoint belongs to, None if none."""
        match path:
            case ("state_dict", name):
                found = self.tensors.get(name.removeprefix("model."))
            case ("optimizer_states", number, "state", index, _):
                found = self.optimized[number][index]
            case ("callbacks", _, name):
                found = self.tensors.get(name)
            case _:
                found = None
        return found if isinstance(found, DTensor) and found.shape == shape else None


def in_parts_like(value: Any, like: Like, path: tuple[Any, ...] = ()) -> Any:
    """Returns a checkpoint of whole tensors with those sharded that are sharded in the run."""
    if isinstance(value, Tensor):
        place = like(path, value.shape)
        return value if place is None else _own_part_of(value, place)
    return _mapped(value, path, lambda inner, where: in_parts_like(inner, like, where))


def _own_part_of(tensor: Tensor, place: DTensor) -> DTensor:
    sizes, starts = compute_local_shape_and_global_offset(tensor.shape, place.device_mesh, place.placements)
    own = tensor[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))]
    local = own.to(place.to_local().device).contiguous().clone()
    return DTensor.from_local(
        local, place.device_mesh, place.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def read_sharded(rest: dict[str, Any], folder: Path, like: Like | None) -> dict[str, Any]:
    """Returns the checkpoint of a folder, given the content of its `run.ckpt`.

    `like` None: the tensors are whole, and this process reads alone.
    """
    reader = FileSystemReader(folder)
    known = reader.read_metadata().state_dict_metadata
    wanted: dict[str, Tensor] = {}

    def empty(value: Any, path: tuple[Any, ...]) -> Any:
        if not (isinstance(value, Mapping) and PART in value):
            return _mapped(value, path, empty)
        facts = known[value[PART]]
        place = like(path, facts.size) if like is not None else None
        made = torch.empty(facts.size, dtype=facts.properties.dtype)
        if place is not None:
            made = torch.empty_like(place.detach(), dtype=facts.properties.dtype)
        wanted[value[PART]] = made
        return made

    checkpoint = empty(rest, ())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process reads it, as it should
        dcp.load(wanted, storage_reader=reader, no_dist=like is None)
    return checkpoint


def _taken_apart(value: Any, path: tuple[Any, ...], parts: dict[str, Tensor]) -> Any:
    """Returns the value with a placeholder for each sharded tensor, a copy of which goes into `parts`."""
    if isinstance(value, DTensor):
        key = "/".join(map(str, path))
        parts[key] = value.detach().cpu() if value.device.type != "cpu" else value.detach().clone()
        return {PART: key}
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return _mapped(value, path, lambda inner, where: _taken_apart(inner, where, parts))


def _mapped(value: Any, path: tuple[Any, ...], change: Callable[[Any, tuple[Any, ...]], Any]) -> Any:
    """Returns mappings and lists with their items changed, anything else as it is."""
    if isinstance(value, Mapping):
        return {key: change(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(change(inner, (*path, number)) for number, inner in enumerate(value))
    return value
