"""A disk that is full, or cannot be written: one sentence, nothing that is half there, and the same run afterwards."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import vision.whole_files
from arlow_vl.cli import main
from arlow_vl.data import packing
from arlow_vl.data.tokens.shards import TokenLimits
from arlow_vl.errors import CheckpointError, ResourceError
from arlow_vl.models import folder_writing
from arlow_vl.training.checkpoint_io import newest_good
from arlow_vl.training.checkpoint_names import checkpoints
from arlow_vl.training.logs import LineFile
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.report.folder import UNFINISHED, is_finished
from arlow_vl.training.run import fit
from arlow_vl.training.sharded_checkpoints import _reason
from tests.tiny_runs import sentences, write_image_text_recipe, write_jsonl, write_text_recipe
from tests.training.test_run import Interrupt, facts, start


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    return str(write_text_recipe(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    assert start(config, folder) is None
    return facts(folder)


def full(monkeypatch, name: str) -> None:
    """Whatever is written whole under this name meets a full disk, as its bytes are forced onto it."""
    put = vision.whole_files.put_in_place

    def put_in_place(partial: Path, final: Path) -> None:
        if final.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(partial, final)

    monkeypatch.setattr(vision.whole_files, "put_in_place", put_in_place)
    monkeypatch.setattr(folder_writing, "put_in_place", put_in_place)


@pytest.mark.parametrize(
    ("name", "sentence", "saved"),
    [
        ("config.yaml", "the disk at {}/config.yaml is full", 0),
        ("step-000003.ckpt", "cannot save {}/checkpoints/step-000003.ckpt: No space left on device", 0),
        ("step-000009.ckpt", "cannot save {}/checkpoints/step-000009.ckpt: No space left on device", 6),
        ("hf", "cannot save {}/hf: [Errno 28] No space left on device; nothing was left there", 12),
        ("report.html", "the disk at {}/report.html is full", 12),
    ],
)
def test_where_the_disk_is_full_the_run_says_so_and_goes_on_as_if_it_had_not_been(
    config, whole, tmp_path, monkeypatch, capsys, name, sentence, saved
):
    words = ["fit", "--config", config, "--run_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        full(patch, name)
        assert main(words) == 6
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("arlow: ")]
    assert sentence.format(tmp_path) in line
    newest = newest_good(tmp_path / "checkpoints")
    assert (newest and newest.name) == (f"step-{saved:06d}.ckpt" if saved else None)
    assert (tmp_path / "hf").exists() == (name == "report.html")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert main(words) == 0
    assert facts(tmp_path) == whole
    assert (tmp_path / "report.html").is_file()


def test_a_log_that_cannot_be_written_is_named():
    with pytest.raises(ResourceError, match=r"cannot write /dev/full: No space left on device; checkpoints saved be"):
        LineFile(Path("/dev/full")).write("a line")


def test_a_tokenizer_that_finds_the_disk_full_is_told_as_all_else(tmp_path):
    """Its library raises a plain Exception."""

    class Part:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            raise Exception("No space left on device (os error 28)")

    with pytest.raises(ResourceError, match=r"cannot save .*/hf: No space left on device \(os error 28\); nothing was"):
        folder_writing.save_folder([Part()], tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_so_is_a_checkpoint_of_several_processes():
    """torch hands on the tracebacks of all of them, in one text."""
    from torch.distributed.checkpoint import CheckpointException

    later = RuntimeError("unexpected pos 64 vs 0")
    later.__context__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error = CheckpointException("write", {1: (later, None), 3: (ValueError("more\nlines"), None)})
    assert _reason(error) == "rank 1: No space left on device"


def can_mount(folder: Path) -> bool:
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


def test_a_file_system_that_is_read_only_is_refused_by_the_key(config, tmp_path, capsys):
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        assert main(["fit", "--config", config, "--run_dir", str(tmp_path / "run")]) == 6
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert f"arlow: run_dir {tmp_path}/run cannot be written (Read-only file system); name" in capsys.readouterr().err


def test_features_that_have_no_room_are_told_once(tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    config = str(write_image_text_recipe(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        assert main(["fit", "--config", config]) == 6
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("arlow: ")]
    assert line.startswith(f"arlow: the disk at {tmp_path}/features/")
    assert line.endswith(" bytes, 1,000 are free); make room and run the command again: what is whole is kept")
    assert line.count("make room") == 1 and line.count("features of") == 1


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file gets longer than so many bytes: as a disk with so much room, also for processes of this one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("workers", [1, 2])
def test_text_that_has_no_room_as_tokens_leaves_nothing_half_written(tmp_path, capsys, workers, monkeypatch):
    # Several parts, which processes write at once.
    monkeypatch.setattr(packing, "TokenLimits", partial(TokenLimits, part_bytes=30_000))
    monkeypatch.setattr(packing, "cores", lambda: workers)
    config = str(write_text_recipe(tmp_path, train_text=str(write_jsonl(tmp_path / "long.jsonl", sentences(2000)))))
    with room_for(20_000):
        assert main(["fit", "--config", config]) == 6
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("arlow: ")]
    assert f"arlow: the disk at {tmp_path}/packed/" in line and line.count("make room") == 1
    assert not list((tmp_path / "packed").rglob("*.partial"))
    assert main(["fit", "--config", config]) == 0


LONGER = ("--optim.schedule", "constant", "--run.max_steps", "16")


@pytest.mark.parametrize("hook", ["validation", "trained"])
def test_a_run_that_is_made_longer_and_killed_behind_its_last_checkpoint_is_not_taken_for_finished(
    config, tmp_path, hook
):
    assert start(config, tmp_path, *LONGER[:2]) is None
    short = facts(tmp_path)["weights"]
    assert start(config, tmp_path, *LONGER, interrupt=Interrupt(hook, 16)) == 1
    assert checkpoints(tmp_path / "checkpoints")[0].name == "step-000016.ckpt"
    assert not is_finished(tmp_path)
    assert start(config, tmp_path, *LONGER) is None
    assert facts(tmp_path)["weights"] != short
    assert is_finished(tmp_path) and not (tmp_path / UNFINISHED).exists()


def test_a_wrong_bit_in_what_a_run_begins_with_is_found_where_its_folder_has_checksums(config, tmp_path):
    start(config, tmp_path / "first", "--run.max_steps", "4")
    product = tmp_path / "first" / "hf"
    weights = product / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    import yaml

    recipe = yaml.safe_load(Path(config).read_text()) | {"checkpoint": str(product)}
    del recipe["tokenizer"], recipe["model"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--config", str(tmp_path / "again.yaml"), "--run_dir", str(tmp_path / "again"), "--run.max_steps", "4"]
    with pytest.raises(CheckpointError, match=r"model.safetensors: SHA-256 differs .* or remove checksums.json if"):
        fit(parse_recipe(words))
    (product / "checksums.json").unlink()
    fit(parse_recipe(words))
