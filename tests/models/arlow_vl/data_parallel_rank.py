"""One rank of `test_data_parallel.py`: a training step of a vision-language model, of which rank 1 has no image."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from arlow_vl import ArlowVLForConditionalGeneration


def shard(model: torch.nn.Module) -> torch.nn.Module:
    """As transformers' plan has it: every decoder layer a unit, the rest another."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def main(folder: Path, engine: str) -> None:
    dist.init_process_group("gloo")
    dtype = torch.bfloat16 if engine == "fsdp2" else torch.float32
    model = ArlowVLForConditionalGeneration.from_pretrained(folder, dtype=dtype).train()
    inputs = torch.load(folder / f"inputs{dist.get_rank()}.pt")
    wrapped = shard(model) if engine == "fsdp2" else DistributedDataParallel(model, find_unused_parameters=False)
    loss = wrapped(**inputs, use_cache=False).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in gradients.items()}
    torch.save({"loss": loss.detach(), "gradients": whole}, folder / f"rank{os.environ['RANK']}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
