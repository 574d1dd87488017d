"""4-bit and 8-bit weights: what is quantised and what is not, what survives saving, and LoRA on top."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from arlow_vl.models.arlow.layers_arlow import ArlowRMSNorm
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from tests.models.arlow.test_modeling_arlow import text, text_with_images

PROJECTIONS_OF_A_LAYER, PROJECTIONS_OF_A_CROSS_BLOCK = 7, 7


def nf4() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def llm_int8() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_8bit=True)


def torchao_int8() -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def torchao_int4() -> TorchAoConfig:
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    # Int4WeightOnlyConfig packs for CUDA kernels only; this one runs everywhere.
    return TorchAoConfig(IntxWeightOnlyConfig(torch.int4, granularity=PerGroup(32)))


SCHEMES = {"nf4": nf4, "llm_int8": llm_int8, "torchao_int8": torchao_int8, "torchao_int4": torchao_int4}


@pytest.fixture
def saved(open_model, tmp_path):
    folder = tmp_path / "plain"
    open_model.save_pretrained(folder)
    return folder


def load(folder, scheme: str | None = None) -> ArlowForCausalLM:
    config = {} if scheme is None else {"quantization_config": SCHEMES[scheme]()}
    return ArlowForCausalLM.from_pretrained(folder, device_map="cpu", **config).eval()


def is_quantised(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module.weight) is not nn.Parameter


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_projection_is_quantised_and_nothing_else(saved, scheme):
    model = load(saved, scheme)
    assert type(model.lm_head) is nn.Linear  # bitsandbytes replaces that exact type, and what extends it is passed over
    quantised = [name for name, module in model.named_modules() if is_quantised(module)]
    assert len(quantised) == 4 * PROJECTIONS_OF_A_LAYER + 2 * PROJECTIONS_OF_A_CROSS_BLOCK
    plain = load(saved)
    norms = [name for name, module in model.named_modules() if isinstance(module, ArlowRMSNorm)]
    gates = [name for name, _ in model.named_parameters() if name.endswith("_gate")]
    for name in [*(f"{name}.weight" for name in norms), *gates, "lm_head.weight"]:
        kept = model.get_parameter(name)
        assert kept.dtype == torch.float32, name
        assert torch.equal(kept, plain.get_parameter(name)), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_stay_close_and_survive_saving(saved, scheme, tmp_path):
    input_ids, images = text_with_images()
    expected = load(saved)(input_ids, encoder_hidden_states=images).logits
    model = load(saved, scheme)
    # Saved before its first use: for inference bitsandbytes repacks nf4 on CPUs with AVX512-BF16 and rounds its scales.
    model.save_pretrained(tmp_path / "quantised")
    logits = model(input_ids, encoder_hidden_states=images).logits
    # 8 bits leave an error of about 1/256 of a group's range a weight, 4 bits of about 1/16; small random layers
    # have no redundancy to average it away.
    error = (logits - expected).norm() / expected.norm()
    assert 0 < error < (0.02 if "int8" in scheme else 0.25)
    again = ArlowForCausalLM.from_pretrained(tmp_path / "quantised", device_map="cpu").eval()
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again(input_ids, encoder_hidden_states=images).logits, logits)


@pytest.mark.parametrize("scheme", ["nf4", "torchao_int8"])
def test_qlora_trains_the_adapter_on_a_quantised_base(saved, scheme):
    model = prepare_model_for_kbit_training(load(saved, scheme))
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "lora_" not in name}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * (4 * PROJECTIONS_OF_A_LAYER + 2 * PROJECTIONS_OF_A_CROSS_BLOCK)
    input_ids, images = text_with_images()
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(input_ids=input_ids, labels=input_ids, encoder_hidden_states=images, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True), losses
    for name, parameter in model.named_parameters():
        if name in before and not is_quantised(model.get_submodule(name.rsplit(".", 1)[0])):
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_have_the_dtype_that_the_rest_is_loaded_in(saved, dtype):
    model = ArlowForCausalLM.from_pretrained(saved, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_model_generates_the_same_with_and_without_a_cache(saved, scheme):
    model, input_ids = load(saved, scheme), text(2, 6)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    settings["attention_mask"] = torch.ones_like(input_ids)
    cached, uncached = (model.generate(input_ids, use_cache=use_cache, **settings) for use_cache in (True, False))
    assert torch.equal(cached, uncached)


def test_the_decoder_of_a_vision_language_model_is_quantised_too(small_config, tmp_path):
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=160)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=small_config, vision_config=vision_config))
    model.save_pretrained(tmp_path)
    model = ArlowVLForConditionalGeneration.from_pretrained(tmp_path, device_map="cpu", quantization_config=nf4())
    decoder = model.model.language_model
    linear = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 4 * PROJECTIONS_OF_A_LAYER + 2 * PROJECTIONS_OF_A_CROSS_BLOCK
    assert all(is_quantised(module) for module in linear)
    input_ids = text(1, 5)
    input_ids[0, 1] = small_config.image_token_id
    assert model(input_ids, pixel_values=torch.randn(1, 3, 160, 160)).logits.isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_encoder_keeps_its_weights_when_it_is_quantised(small_config, tmp_path, scheme):
    """What quantised layers hold beside their weights is not taken for weights that the checkpoint lacks."""
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=32)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=small_config, vision_config=vision_config))
    model.eval().save_pretrained(tmp_path)
    settings = {"device_map": "cpu", "quantization_config": SCHEMES[scheme]()}
    loaded = ArlowVLForConditionalGeneration.from_pretrained(tmp_path, **settings).eval()
    images = torch.randn(2, 3, 32, 32)
    expected, tokens = (m.model.vision(images).flatten().float() for m in (model, loaded))
    assert torch.corrcoef(torch.stack([expected, tokens]))[0, 1] > 0.99
