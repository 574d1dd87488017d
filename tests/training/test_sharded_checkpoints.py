"""Folders of checkpoints that are whole or absent, and of which every damage is told."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from arlow_vl.errors import CheckpointError, ResourceError
from arlow_vl.training.checkpoint_io import find_damage, newest_good, read_checkpoint, remove_leftovers
from arlow_vl.training.checkpoint_names import checkpoints
from arlow_vl.training.settings import EngineConfig
from arlow_vl.training.sharded_checkpoints import ShardedWriter
from arlow_vl.training.sharding import ShardedStrategy

VALUES = torch.arange(12.0).reshape(4, 3)


@pytest.fixture
def saved(mesh, tmp_path):
    tensor = distribute_tensor(VALUES.clone(), mesh, [Shard(0)])
    writer = ShardedWriter()
    writer.begin(
        {"state_dict": {"a.b": tensor}, "whole": torch.ones(2), "steps": [1, {"two": 2}]}, tmp_path / "step-000003.ckpt"
    )
    tensor.mul_(0)  # training goes on while it is written
    writer.wait()
    return tmp_path / "step-000003.ckpt"


def test_what_was_written_in_parts_is_read_whole(saved):
    read = read_checkpoint(saved)
    assert not isinstance(read["state_dict"]["a.b"], DTensor)
    assert torch.equal(read["state_dict"]["a.b"], VALUES)
    assert torch.equal(read["whole"], torch.ones(2))
    assert read["steps"] == [1, {"two": 2}]


@pytest.mark.parametrize("name", ["manifest.json", "run.ckpt", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", ["absent", "cut", "changed"])
def test_every_damage_of_every_file_is_told_and_nothing_is_loaded(saved, name, damage):
    path = saved / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[: -5 if damage == "cut" else None])
    if damage == "absent":
        path.unlink()
    told = find_damage(saved)
    assert name in told or (name == "manifest.json" and "differs" in told)  # then it is the file that it speaks of
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(saved)


def test_a_process_that_resumes_reads_its_own_parts_alone(mesh, saved):
    manifest = saved / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"__1_0.distcp": facts["__0_0.distcp"]}))
    assert "__1_0.distcp" in find_damage(saved)  # which the first process tells before any resumes
    module = LightningModule()
    module.model = nn.ModuleDict({"a": nn.ParameterDict({"b": distribute_tensor(VALUES * 0, mesh, [Shard(0)])})})
    strategy = ShardedStrategy(EngineConfig(strategy="fsdp"))
    strategy.connect(module)
    assert torch.equal(strategy.load_checkpoint(saved)["state_dict"]["a.b"].full_tensor(), VALUES)


def test_what_a_killed_save_has_left_is_no_checkpoint_and_goes(saved):
    partial = saved.with_name(f".partial-{saved.name}")
    partial.mkdir()
    assert checkpoints(saved.parent) == [saved]
    remove_leftovers(saved.parent, newest_good(saved.parent))
    assert not partial.exists()


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(mesh, tmp_path):
    (tmp_path / "file").write_text("")
    writer = ShardedWriter()
    writer.begin({"state_dict": {}}, tmp_path / "file" / "step-000001.ckpt")
    with pytest.raises(ResourceError, match=r"cannot save .*step-000001.ckpt: .*checkpoints saved before are whole"):
        writer.wait()
