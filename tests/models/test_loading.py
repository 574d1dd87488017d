"""Building, saving and loading, in the ways that transformers has for its own models."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from arlow_vl.models import auto
from arlow_vl.models.arlow.attention import default_attention
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration


@pytest.fixture
def input_ids():
    return torch.randint(20, 300, (2, 8))


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_one_file_and_many_shards_hold_the_same_model(open_model, input_ids, tmp_path, shard):
    open_model.save_pretrained(tmp_path, max_shard_size=shard)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == 1 if shard == "5GB" else len(files) > 1
    saved = [key for file in files for key in safe_open(file, "pt").keys()]  # noqa: SIM118, it is no mapping
    assert sum("embed_tokens" in key or "lm_head" in key for key in saved) == 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(input_ids).logits, open_model(input_ids).logits)


def begin_weights_at(path, places: int) -> int:
    """Writes a safetensors file anew with `places` letters more in its header; where its tensors now begin, mod 64."""
    save_file(load_file(path), path, metadata={"format": "pt", "room": "x" * places})
    return (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64


def test_no_bit_of_the_logits_depends_on_where_in_their_file_the_weights_begin(open_model, tmp_path):
    """MKL multiplies a row with a weight off a multiple of 16 bytes in another order than with one on it."""
    open_model.save_pretrained(tmp_path)
    row, rows, places = torch.randint(20, 300, (1, 1)), torch.randint(20, 300, (3, 8)), set()
    for letters in range(0, 64, 8):
        places.add(begin_weights_at(tmp_path / "model.safetensors", letters))
        loaded = ArlowForCausalLM.from_pretrained(tmp_path)
        for input_ids in (row, rows):
            expected = open_model(input_ids, logits_to_keep=1).logits
            assert torch.equal(loaded(input_ids, logits_to_keep=1).logits, expected)
    assert places == set(range(0, 64, 8))


@pytest.mark.parametrize("report", [False, True])
def test_loaded_weights_begin_where_torch_would_put_them_and_stay_tied(open_model, tmp_path, report):
    open_model.save_pretrained(tmp_path)
    begin_weights_at(tmp_path / "model.safetensors", 1)
    loaded = ArlowForCausalLM.from_pretrained(tmp_path, output_loading_info=report)
    loaded = loaded[0] if report else loaded
    assert not any(parameter.data_ptr() % 64 for parameter in loaded.parameters())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_a_device_map_puts_every_tensor_where_it_says(open_model, input_ids, tmp_path, device_map):
    pytest.importorskip("accelerate", reason="transformers dispatches by accelerate")
    open_model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map).eval()
    assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}
    assert torch.equal(loaded(input_ids).logits, open_model(input_ids).logits)


OTHERS_ON_CPU = dict.fromkeys(("model.projector", "model.language_model", "lm_head"), "cpu")


@pytest.mark.parametrize("blocks", [None, [0]])
@pytest.mark.parametrize("device_map", [{"": "disk"}, {"model.vision": "disk", **OTHERS_ON_CPU}])
def test_weights_that_stay_on_the_disk_see_the_same(open_model, input_ids, tmp_path, device_map, blocks):
    accelerate = pytest.importorskip("accelerate", reason="transformers dispatches by accelerate")
    if "" in device_map and accelerate.__version__.startswith("1.12."):
        pytest.skip("accelerate 1.12 puts no whole model on the disk")
    open_model.save_pretrained(tmp_path / "text")
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=64, blocks=blocks)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(tmp_path / "text", vision_config).eval()
    model.save_pretrained(tmp_path / "model")
    places = {"device_map": device_map, "offload_folder": tmp_path / "disk"}
    loaded = ArlowVLForConditionalGeneration.from_pretrained(tmp_path / "model", **places).eval()
    assert loaded.model.vision.backbone.cls_token.is_meta
    input_ids[:, 0] = model.config.image_token_id
    inputs = {"input_ids": input_ids, "pixel_values": torch.randn(2, 3, 64, 64)}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_a_model_built_without_memory_is_filled_by_loading_it(open_model, input_ids, tmp_path):
    with torch.device("meta"):
        empty = ArlowForCausalLM(open_model.config)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    open_model.save_pretrained(tmp_path)
    loaded = ArlowForCausalLM.from_pretrained(tmp_path)  # itself built on meta
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert torch.equal(loaded.eval()(input_ids).logits, open_model(input_ids).logits)


def test_gates_follow_the_dtype_in_which_the_model_is_built(small_config):
    """One dtype, for FSDP2; what they open is computed in float32 (test_modeling_arlow.py)."""
    model = ArlowForCausalLM._from_config(small_config, dtype=torch.float16)
    gates = [parameter for name, parameter in model.named_parameters() if name.endswith("_gate")]
    assert len(gates) == 4
    assert all(gate.dtype == torch.float16 for gate in gates)
    assert model.lm_head.weight.dtype == torch.float16


@pytest.mark.parametrize(
    ("task", "auto_class", "shape"),
    [
        ("SequenceClassification", AutoModelForSequenceClassification, (2, 3)),
        ("TokenClassification", AutoModelForTokenClassification, (2, 8, 3)),
        ("QuestionAnswering", AutoModelForQuestionAnswering, (2, 8)),
    ],
)
def test_a_text_checkpoint_takes_another_head(open_model, input_ids, tmp_path, task, auto_class, shape):
    open_model.save_pretrained(tmp_path)
    model = auto_class.from_pretrained(tmp_path, num_labels=3).eval()
    assert type(model) is getattr(auto, f"ArlowFor{task}")
    assert torch.equal(model.model.layers[3].mlp.up_proj.weight, open_model.model.layers[3].mlp.up_proj.weight)
    output = model(input_ids)
    assert (output.start_logits if task == "QuestionAnswering" else output.logits).shape == shape


def test_an_attribute_that_is_no_field_is_left_out_of_the_file(small_config, tmp_path):
    small_config.batch_norm_eps = 1.0
    small_config.save_pretrained(tmp_path)
    assert "batch_norm_eps" not in json.loads((tmp_path / "config.json").read_text())
    assert ArlowConfig.from_pretrained(tmp_path).hidden_size == small_config.hidden_size


def test_a_shallow_model_has_its_cross_block_in_front_of_the_last_layer():
    assert ArlowConfig(num_hidden_layers=2).cross_attention_layers == [1]
    assert ArlowConfig(num_hidden_layers=8).cross_attention_layers == [3, 7]


def test_the_gate_is_the_default_where_a_kernel_could_open_it(small_config, monkeypatch):
    for has_cuda, name in ((True, "arlow"), (False, "sdpa")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_cuda=has_cuda: has_cuda)
        assert default_attention() == name
        assert ArlowForCausalLM(ArlowConfig(**small_config.to_dict())).config._attn_implementation == name


def test_flash_attention_that_is_not_installed_is_refused_by_name(small_config):
    if torch.cuda.is_available():
        pytest.skip("this machine may have it")
    with pytest.raises(ImportError, match="FlashAttention2 doesn't seem to be installed"):
        ArlowForCausalLM._from_config(small_config, attn_implementation="flash_attention_2")


def test_the_name_of_the_cache_before_transformers_5_24_still_works(open_model, input_ids):
    first = open_model(input_ids, use_cache=True)
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
        old = open_model(input_ids[:, :1], past_key_values=first.cache).logits
    expected = open_model(torch.cat([input_ids, input_ids[:, :1]], dim=1)).logits[:, -1:]
    torch.testing.assert_close(old, expected)
