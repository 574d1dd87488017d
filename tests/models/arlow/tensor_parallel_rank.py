"""One rank of `test_parallel_plans.py`: loads each checkpoint sharded over all ranks and saves what it computes."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

import arlow_vl


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def results(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict:
    with torch.no_grad():
        logits = model(**inputs).logits
    generated = model.generate(
        **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), max_new_tokens=6, do_sample=False
    )
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradients = {name: full(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"logits": full(logits), "generated": generated, "gradients": gradients}


def main(folder: Path) -> None:
    saved = {}
    for case in sorted(path for path in folder.iterdir() if path.is_dir()):
        model_class = getattr(arlow_vl, PreTrainedConfig.get_config_dict(case)[0]["architectures"][0])
        model = model_class.from_pretrained(case, distributed_config=DistributedConfig(tp_plan="auto")).eval()
        computed = {name: results(model, inputs) for name, inputs in torch.load(case / "inputs.pt").items()}
        sharded = {name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
        saved[case.name] = {"computed": computed, "sharded": sharded}
    torch.save(saved, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
