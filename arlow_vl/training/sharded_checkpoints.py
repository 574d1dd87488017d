"""Checkpoints that every process writes its part of: folders of torch.distributed.checkpoint, whole or absent.

    step-000100.ckpt/
        manifest.json       SHA-256 and size of every other file; written last
        run.ckpt            what is no tensor in parts: loops, loader, settings (`checkpoint_io`)
        .metadata, *.distcp the tensors, each process's part in a file of its own

The folder is written under another name and renamed. Any number of processes can read it, one as well, which gets whole
tensors; and a checkpoint of one process can be read in parts. The folder must lie where all processes see it.
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
from vision.whole_files import put_in_place, sha256_of_file

MANIFEST = "manifest.json"
REST = "run.ckpt"
PARTIAL = ".partial-"
"""In front of the name of a folder that is being written."""
PART = "a tensor in parts"
"""Key of a mapping that stands in `run.ckpt` for one."""


class ShardedWriter:
    """Writes checkpoints in the background, one at a time; every process has one."""

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo")  # of its own, as training talks meanwhile
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def begin(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Copies the tensors and returns. Raises what went wrong with the checkpoint before."""
        self.wait()
        parts: dict[str, Tensor] = {}
        rest = _taken_apart(checkpoint, (), parts)
        self.thread = threading.Thread(target=self._write, args=(rest, parts, path), daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Until the last one is there.

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
        from arlow_vl.training.checkpoint_io import remove_older

        try:
            write_sharded(rest, parts, path, self.group)
            if dist.get_rank(self.group) == 0:
                remove_older(path.parent)
        except BaseException as error:  # told where the next one begins, or the run ends
            self.error = error


def write_sharded(rest: dict[str, Any], parts: dict[str, Tensor], path: Path, group: Any) -> None:
    """Raises ResourceError; then nothing has the name."""
    from arlow_vl.training.checkpoint_io import write_checkpoint

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
    """One line; of what failed on several processes the first, of which torch would print every traceback."""
    if isinstance(error, CheckpointException):
        rank, (found, _) = min(error.failures.items())
        while first := found.__cause__ or found.__context__:  # torch's writer fails again as it is closed
            found = first
        return f"rank {rank}: {_reason(found)}" if isinstance(found, OSError) else f"rank {rank}: {_first_line(found)}"
    return error.strerror or _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _facts_of(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    return {path.name: {"sha256": sha256_of_file(path), "size": path.stat().st_size} for path in paths}


def find_damage_in(folder: Path) -> str | None:
    """What is wrong with such a folder, None if it is whole."""
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
    """How the tensors of a run lie on its devices: those of a checkpoint shall lie like them."""

    def __init__(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self.tensors = dict(model.named_parameters(remove_duplicate=False))
        self.optimized = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]

    def __call__(self, path: tuple[Any, ...], shape: torch.Size) -> Tensor | None:
        """Of the parameter that the tensor at this place of a checkpoint is of; None: it is whole everywhere."""
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
    """A checkpoint of whole tensors as one of parts."""
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
    """The checkpoint whose `run.ckpt` was read. `like` None: with whole tensors, in a process by itself."""
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
    """The value with marks in place of the tensors in parts, copies of which go into `parts`."""
    if isinstance(value, DTensor):
        key = "/".join(map(str, path))
        parts[key] = value.detach().cpu() if value.device.type != "cpu" else value.detach().clone()
        return {PART: key}
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return _mapped(value, path, lambda inner, where: _taken_apart(inner, where, parts))


def _mapped(value: Any, path: tuple[Any, ...], change: Callable[[Any, tuple[Any, ...]], Any]) -> Any:
    """Mappings and lists with their items changed; all else as it is."""
    if isinstance(value, Mapping):
        return {key: change(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(change(inner, (*path, number)) for number, inner in enumerate(value))
    return value
