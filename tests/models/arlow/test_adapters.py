"""LoRA through peft: which parameters train, what stays untouched, and that a merged adapter is the same model."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from tests.conftest import open_gates
from tests.models.arlow.test_modeling_arlow import text, text_with_images

SELF_ATTENTION = r".*\.self_attn\.(q|k|v|o)_proj"
CROSS_ATTENTION = r".*\.cross_block\.attn\.(q|k|v|o)_proj"
BOTH = r".*\.(self_attn|cross_block\.attn)\.(q|k|v|o)_proj"
TARGETS = pytest.mark.parametrize(
    "target_modules", [SELF_ATTENTION, CROSS_ATTENTION, BOTH, "all-linear"], ids=["self", "cross", "both", "all-linear"]
)


def with_lora(model, target_modules: str | list[str]) -> PeftModel:
    return get_peft_model(model, LoraConfig(r=4, target_modules=target_modules, task_type="CAUSAL_LM"))


def fill_adapter(model) -> None:
    """LoRA's second matrix starts at zero; filled, the adapter changes what the model says."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)


def batch() -> dict[str, torch.Tensor]:
    input_ids, images = text_with_images()
    return {"input_ids": input_ids, "labels": input_ids, "encoder_hidden_states": images}


@TARGETS
def test_a_step_trains_the_adapter_alone_and_lowers_the_loss(open_model, target_modules):
    before = {name: value.clone() for name, value in open_model.state_dict().items()}
    model, inputs = with_lora(open_model, target_modules), batch()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True), losses
    base = model.unload().state_dict()
    assert before.keys() == base.keys()
    assert all(torch.equal(value, base[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("target_modules", "blocks", "count"),
    [
        (SELF_ATTENTION, {"self_attn"}, 16),
        (CROSS_ATTENTION, {"cross_block"}, 8),
        (BOTH, {"self_attn", "cross_block"}, 24),
    ],
    ids=["self", "cross", "both"],
)
def test_the_adapter_lies_where_it_was_asked_for(open_model, target_modules, blocks, count):
    names = [name for name, _ in with_lora(open_model, target_modules).named_modules() if name.endswith("lora_A")]
    assert len(names) == count
    assert {part for name in names for part in name.split(".") if part in ("self_attn", "cross_block", "mlp")} == blocks


def test_all_linear_reaches_every_projection_but_the_head(open_model):
    linear = [name for name, part in open_model.named_modules() if isinstance(part, torch.nn.Linear)]
    names = [name for name, _ in with_lora(open_model, "all-linear").named_modules() if name.endswith(".lora_A")]
    assert len(names) == len(linear) - 1
    assert not any("lm_head" in name for name in names)


@TARGETS
def test_a_saved_adapter_loads_onto_the_base_model(open_model, target_modules, tmp_path):
    base = ArlowForCausalLM(open_model.config).eval()
    base.load_state_dict(open_model.state_dict())
    model, inputs = with_lora(open_model, target_modules).eval(), batch()
    fill_adapter(model)
    model.save_pretrained(tmp_path)
    plain = base(**inputs).logits
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()(**inputs).logits
    assert torch.equal(loaded, model(**inputs).logits)
    assert not torch.equal(loaded, plain)


@TARGETS
def test_the_merged_model_equals_the_unmerged_one(open_model, target_modules):
    model, inputs = with_lora(open_model, target_modules).eval(), batch()
    fill_adapter(model)
    unmerged = model(**inputs).logits
    merged = model.merge_and_unload()
    assert isinstance(merged, ArlowForCausalLM)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    # (W + BA) x against W x + B (A x): the same sum in another order, float32 through four layers.
    torch.testing.assert_close(merged(**inputs).logits, unmerged, rtol=1e-4, atol=1e-5)


def test_a_merged_model_saves_and_loads_as_a_plain_checkpoint(open_model, tmp_path):
    model, inputs = with_lora(open_model, BOTH).eval(), batch()
    fill_adapter(model)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert torch.equal(ArlowForCausalLM.from_pretrained(tmp_path)(**inputs).logits, merged(**inputs).logits)


@pytest.mark.parametrize("use_reentrant", [True, False])
@TARGETS
def test_gradient_checkpointing_gives_adapters_the_same_gradients(open_model, target_modules, use_reentrant):
    model, inputs = with_lora(open_model, target_modules).train(), batch()
    fill_adapter(model)
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(model(**inputs).loss, adapter)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.enable_input_require_grads()  # the embedding is frozen: without it reentrant checkpoints see no gradient
    model(**inputs, use_cache=False).loss.backward()
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in zip(adapter, expected, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in expected)


@TARGETS
def test_tied_embeddings_stay_one_tensor_with_an_adapter_and_after_merging(open_model, target_modules):
    model = with_lora(open_model, target_modules)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    fill_adapter(model)
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["lora", "dora", "modules_to_save"])
def test_an_adapter_of_the_head_counts_in_a_loss_without_logits(open_model, kind):
    """The loss was that of the head without its adapter, which got no gradient."""
    saved = kind == "modules_to_save"
    config = LoraConfig(
        r=4,
        target_modules=["q_proj"] if saved else ["q_proj", "lm_head"],
        modules_to_save=["lm_head"] if saved else None,
        use_dora=kind == "dora",
        task_type="CAUSAL_LM",
    )
    model, inputs = get_peft_model(open_model, config), batch()
    fill_adapter(model)
    adapter = [p for name, p in model.named_parameters() if "lm_head" in name and p.requires_grad]
    losses = [model(**inputs, skip_logits=skips).loss for skips in (False, True)]
    torch.testing.assert_close(losses[1], losses[0])
    expected, lean = (torch.autograd.grad(loss, adapter) for loss in losses)
    for gradient, plain in zip(lean, expected, strict=True):
        assert plain.any()
        torch.testing.assert_close(gradient, plain, rtol=1e-4, atol=1e-6)


def test_embeddings_behind_an_adapter_tell_where_images_are(open_model):
    """The product of an adapter rounds otherwise for one token than for a text."""
    model = with_lora(open_model, ["embed_tokens", "q_proj"])
    torch.nn.init.normal_(model.get_input_embeddings().lora_embedding_B["default"])
    input_ids, images = text_with_images()
    embeds = model.get_input_embeddings()(input_ids)
    by_embeds = model(inputs_embeds=embeds, encoder_hidden_states=images).logits
    torch.testing.assert_close(by_embeds, model(input_ids, encoder_hidden_states=images).logits)


def test_lora_on_cross_attention_leaves_text_without_images_alone_bit_for_bit(open_model):
    input_ids = text(2, 12)
    expected = open_model(input_ids).logits
    model = with_lora(open_model, CROSS_ATTENTION).eval()
    fill_adapter(model)
    assert torch.equal(model(input_ids).logits, expected)
    assert torch.equal(model.merge_and_unload()(input_ids).logits, expected)


def test_lora_on_cross_attention_behind_closed_gates_changes_nothing(small_config):
    model, (input_ids, images) = ArlowForCausalLM(small_config).eval(), text_with_images()
    expected = model(input_ids).logits
    model = with_lora(model, CROSS_ATTENTION).eval()
    fill_adapter(model)
    assert torch.equal(model(input_ids, encoder_hidden_states=images).logits, expected)
    open_gates(model)
    assert not torch.equal(model(input_ids, encoder_hidden_states=images).logits, expected)


def test_an_adapted_model_generates_the_same_with_and_without_a_cache(open_model):
    model, (input_ids, images) = with_lora(open_model, BOTH).eval(), text_with_images()
    fill_adapter(model)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "encoder_hidden_states": images}
    mask = torch.ones_like(input_ids)
    cached, uncached = (
        model.generate(input_ids=input_ids, attention_mask=mask, use_cache=use_cache, **settings)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)
