"""Every defect of the published Arlow code stays dead: one test each, named after the defect.

The numbers are those of the list of defects; 22 is the first published version, the others are the second.
"""

import re
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface
from transformers.modeling_outputs import BaseModelOutputWithPast

import arlow_vl
from arlow_vl.models.arlow.attention import eager_attention_forward
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.layers_arlow import apply_rotary, rotary_factors
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM

IMAGE = 7


@pytest.fixture
def input_ids():
    return torch.randint(20, 300, (2, 8))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("implementation", ["arlow", "sdpa", "eager"])
def test_01_the_fallback_has_no_causal_mask(open_model, input_ids, implementation, masked):
    changed = input_ids.clone()
    changed[:, 5] = 19
    mask = torch.ones_like(input_ids) if masked else None
    open_model.set_attn_implementation(implementation)
    before, after = (open_model(ids, attention_mask=mask).logits for ids in (input_ids, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_02_rotary_embedding_overwrites_what_it_still_reads():
    states = torch.randn(1, 2, 5, 8)
    before = states.clone()
    angles = torch.arange(5.0)[None, :, None].expand(1, 5, 8)
    turned = apply_rotary(states, *rotary_factors(angles.cos(), angles.sin()))
    assert torch.equal(states, before)
    torch.testing.assert_close(turned.norm(dim=-1), before.norm(dim=-1))


def test_02_rotary_scores_depend_on_more_than_the_distance(small_config):
    rotary = ArlowForCausalLM(small_config).model.rotary_emb
    query, key = torch.randn(2, 1, 1, 1, 16)
    scores = []
    for start in (0, 7, 60):
        (q, k) = (
            apply_rotary(x, *rotary_factors(*rotary(x, torch.tensor([[position]]))))
            for x, position in ((query, start + 5), (key, start))
        )
        scores.append((q * k).sum())
    # Angles of up to 65 radians carry float32 errors of 4e-6.
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), atol=1e-4, rtol=0)


def test_03_rotary_table_in_half_precision_confuses_positions(small_config):
    model = ArlowForCausalLM(small_config).bfloat16().model
    cos, sin = model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), torch.arange(2048)[None])
    assert cos.dtype == torch.float32
    assert len(torch.unique(torch.cat([cos, sin], -1)[0], dim=0)) == 2048


def test_04_rotary_embedding_turns_cross_attention(open_model):
    """Then a caption would depend on where in the text its image stands, and on the order of the patches."""
    block, image = open_model.model.layers[1].cross_block, torch.randn(1, 5, 64)
    outputs = []
    block.attn.register_forward_hook(lambda _m, args, output: outputs.append((args[0], output)))
    ids = torch.tensor([[IMAGE]])
    for offset, patches in ((0, image), (40, image), (0, image.flip(1))):
        open_model(ids, encoder_hidden_states=patches, position_ids=torch.tensor([[offset]]))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])


def test_05_positions_count_the_padding_and_forget_the_cache(open_model, input_ids):
    whole = open_model(input_ids).logits
    padded = torch.cat([torch.full((2, 3), 3), input_ids], dim=1)
    mask = (padded != 3).long()
    torch.testing.assert_close(open_model(padded, attention_mask=mask).logits[:, 3:], whole)
    start = open_model(padded[:, :6], attention_mask=mask[:, :6], use_cache=True)
    rest = open_model(padded[:, 6:], attention_mask=mask, cache=start.cache)
    torch.testing.assert_close(rest.logits, whole[:, 3:])


def test_06_there_is_no_cache(open_model, input_ids):
    ids, images = torch.cat([torch.full((2, 1), IMAGE), input_ids], dim=1), torch.randn(2, 3, 64)
    first = open_model(ids[:, :5], encoder_hidden_states=images, use_cache=True)
    assert first.cache.get_seq_length() == 5
    rest = open_model(ids[:, 5:], cache=first.cache)  # of text and of images
    torch.testing.assert_close(rest.logits, open_model(ids, encoder_hidden_states=images).logits[:, 5:])


def test_07_the_causal_head_drops_the_encoder_states(open_model, input_ids):
    ids = torch.cat([torch.full((2, 1), IMAGE), input_ids], dim=1)
    one, other = (open_model(ids, encoder_hidden_states=torch.randn(2, 3, 64)).logits for _ in range(2))
    assert not torch.equal(one, other)
    with pytest.raises(TypeError, match="did you mean encoder_hidden_states"):
        open_model(ids, encoder_hidden_state=torch.randn(2, 3, 64))


def test_08_masks_must_be_given(open_model, input_ids):
    ids = torch.cat([torch.full((2, 1), IMAGE), input_ids], dim=1)
    logits = open_model(ids, attention_mask=None, encoder_hidden_states=torch.randn(2, 3, 64)).logits
    assert logits.isfinite().all()


def test_09_results_of_flash_attns_unpad_input_are_unpacked_by_position():
    package = Path(arlow_vl.__file__).parent
    assert not [path for path in package.rglob("*.py") if re.search("bert_padding|unpad_input", path.read_text())]


def test_10_nothing_imports_without_flash_attn(fresh_program):
    assert fresh_program["status"] == 0, fresh_program["err"]


@pytest.mark.parametrize("pad_token_id", [3, None])
def test_11_the_loss_ignores_the_padding_id_instead_of_minus_100(small_config, input_ids, pad_token_id):
    config = ArlowConfig.from_dict(small_config.to_dict() | {"pad_token_id": pad_token_id})
    model = ArlowForCausalLM(config).eval()
    padding, ignored = input_ids.clone(), input_ids.clone()
    padding[:, -4:], ignored[:, -4:] = 3, -100
    logits = model(input_ids).logits[:, :-1]
    for labels in (padding, ignored):
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        torch.testing.assert_close(model(input_ids, labels=labels).loss, expected)


def test_11_padding_hides_the_end_of_text():
    assert ArlowConfig().pad_token_id != ArlowConfig().eos_token_id


def test_12_opening_cross_attention_breaks_the_language_model(small_config, input_ids):
    model = ArlowForCausalLM(small_config).eval()
    ids = torch.cat([torch.full((2, 1), IMAGE), input_ids], dim=1)
    assert torch.equal(model(ids).logits, model(ids, encoder_hidden_states=torch.randn(2, 3, 64)).logits)


def test_13_frozen_is_only_a_word():
    from arlow_vl.training.stages import apply_policy

    model = ArlowForCausalLM(
        ArlowConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=4)
    )
    apply_policy(model, {"decoder": "train", "cross_attention": "frozen"})
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != ("cross_block" in name), name


def test_14_cross_attention_has_neither_grouped_heads_nor_qk_norm(open_model):
    attention = open_model.model.layers[1].cross_block.attn
    assert attention.k_proj.weight.shape == (32, 64)
    assert attention.q_norm.weight.shape == attention.k_norm.weight.shape == (16,)


def test_15_scaled_initialisation_is_overwritten(small_config):
    layer = ArlowForCausalLM(small_config).model.layers[0]
    assert layer.self_attn.o_proj.weight.std() < 0.5 * layer.self_attn.q_proj.weight.std()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_norms_compute_in_half_precision(open_model, dtype):
    norm = open_model.model.norm
    states = 300 * torch.randn(50, 64).to(dtype)  # 300 squared overflows fp16
    exact = states.double() / (states.double().square().mean(-1, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(norm(states).double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def mlp_runs(model: ArlowForCausalLM, input_ids: torch.Tensor) -> int:
    """How often a training step runs the first layer's MLP: once, and once more if it is checkpointed."""
    runs = []
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    model(input_ids, labels=input_ids, use_cache=False).loss.backward()
    hook.remove()
    return len(runs)


def test_17_checkpointing_leaves_out_the_mlp_and_cannot_be_switched_off(small_config, input_ids):
    model = ArlowForCausalLM(small_config).train()
    model.gradient_checkpointing_enable()
    assert mlp_runs(model, input_ids) == 2
    model.gradient_checkpointing_disable()
    assert mlp_runs(model, input_ids) == 1


def test_17_checkpointing_is_reentrant_and_ignores_its_options(small_config, input_ids):
    """Reentrant, it gives no gradient where the layer's input needs none."""
    model = ArlowForCausalLM(small_config).train()
    model.get_input_embeddings().requires_grad_(False)
    model.gradient_checkpointing_enable()
    model(inputs_embeds=torch.randn(2, 8, 64), labels=input_ids, use_cache=False).loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert model.model.layers[0]._gradient_checkpointing_func.keywords == {"use_reentrant": True}


def test_18_tied_weights_are_saved_twice_or_lost(small_config, tmp_path):
    from safetensors import safe_open

    ArlowForCausalLM(small_config).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) + ("model.embed_tokens.weight" in file.keys()) == 1  # noqa: SIM118
    loaded = ArlowForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_19_the_interface_of_the_library_is_missing(open_model, input_ids):
    embeds = open_model.get_input_embeddings()(input_ids)
    torch.testing.assert_close(open_model(inputs_embeds=embeds).logits, open_model(input_ids).logits)
    assert isinstance(open_model(input_ids, return_dict=False), tuple)
    assert isinstance(open_model.model(input_ids), BaseModelOutputWithPast)
    open_model.set_attn_implementation("eager")
    output = open_model(input_ids, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 5
    assert [weights.shape for weights in output.attentions] == [(2, 4, 8, 8)] * 4


def test_19_attn_implementation_is_ignored(open_model, input_ids):
    calls = []

    def spy(*args, **kwargs):
        calls.append(1)
        return eager_attention_forward(*args, **kwargs)

    AttentionInterface.register("spy", spy)
    open_model.set_attn_implementation("spy")
    open_model(input_ids)
    assert len(calls) == 4
    with pytest.raises(ValueError, match="not supported"):
        open_model.set_attn_implementation("no_such_attention")


def test_20_one_knob_drops_attention_and_residuals(small_config, input_ids):
    model = ArlowForCausalLM(ArlowConfig.from_dict(small_config.to_dict() | {"attention_dropout": 0.9}))
    assert not torch.equal(model.train()(input_ids).logits, model.eval()(input_ids).logits)
    for layer in model.model.layers:
        layer.self_attn.v_proj.weight.data.zero_()  # now attention adds nothing, whatever is dropped of it
    assert torch.equal(model.train()(input_ids).logits, model.eval()(input_ids).logits)


def test_21_generation_recomputes_everything(open_model, input_ids):
    lengths = []
    open_model.model.embed_tokens.register_forward_hook(lambda _m, args, _o: lengths.append(args[0].shape[1]))
    options = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 4, "eos_token_id": None}
    cached = open_model.generate(input_ids, **options)
    assert lengths == [8, 1, 1, 1]
    assert torch.equal(open_model.generate(input_ids, use_cache=False, **options), cached)


def test_22_rotary_embedding_is_never_applied(open_model, input_ids):
    spread = 3 * torch.arange(8)[None]
    assert not torch.equal(open_model(input_ids, position_ids=spread).logits, open_model(input_ids).logits)


def test_22_attention_has_a_second_output_projection(open_model):
    matrices = [
        name for name, module in open_model.model.layers[0].self_attn.named_modules() if hasattr(module, "weight")
    ]
    assert matrices == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_23_pad_bos_and_eos_are_unset():
    config = ArlowConfig()
    assert len({config.pad_token_id, config.bos_token_id, config.eos_token_id}) == 3
