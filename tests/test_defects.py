"""Every defect of the published Arlow code stays dead: one test each, named after the defect.

Row 9 (results of flash-attn's `unpad_input` unpacked by position) and row 22 (the version on `flash_attn.MHA`) have no
counterpart here: flash-attn's helpers and modules are not used at all, which `test_10` holds to.
"""

import subprocess
import sys

import pytest
import torch

from arlow_vl.configuration_arlow import ArlowConfig
from arlow_vl.modeling_arlow import ArlowForCausalLM, apply_rotary, rotary_factors

IMAGE = 7


@pytest.fixture
def input_ids():
    return torch.randint(20, 300, (2, 8))


def test_01_the_fallback_has_no_causal_mask(open_model, input_ids):
    changed = input_ids.clone()
    changed[:, -1] = 19
    for implementation in ("arlow", "sdpa", "eager"):
        open_model.set_attn_implementation(implementation)
        assert torch.equal(open_model(input_ids).logits[:, :-1], open_model(changed).logits[:, :-1])


def test_02_rotary_embedding_overwrites_what_it_still_reads():
    states = torch.randn(1, 2, 5, 8)
    before = states.clone()
    angles = torch.arange(5.0)[None, :, None].expand(1, 5, 8)
    turned = apply_rotary(states, *rotary_factors(angles.cos(), angles.sin()))
    assert torch.equal(states, before)
    torch.testing.assert_close(turned.norm(dim=-1), before.norm(dim=-1))


def test_03_rotary_table_in_half_precision_confuses_positions(small_config):
    model = ArlowForCausalLM(small_config).bfloat16().model
    cos, sin = model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), torch.arange(2048)[None])
    assert cos.dtype == torch.float32
    assert len(torch.unique(torch.cat([cos, sin], -1)[0], dim=0)) == 2048


def test_04_rotary_embedding_turns_cross_attention(open_model, input_ids):
    """Then a caption would depend on where in the text its picture stands."""
    block, picture = open_model.model.layers[1].cross_block, torch.randn(1, 5, 64)
    outputs = []
    block.attn.register_forward_hook(lambda _m, args, output: outputs.append((args[0], output)))
    for offset in (0, 40):
        ids = torch.full((1, 2), IMAGE)[:, :1]
        open_model(ids, encoder_hidden_states=picture, position_ids=torch.tensor([[offset]]))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_05_positions_count_the_padding(open_model, input_ids):
    padded = torch.cat([torch.full((2, 3), 3), input_ids], dim=1)
    mask = (padded != 3).long()
    torch.testing.assert_close(open_model(padded, attention_mask=mask).logits[:, 3:], open_model(input_ids).logits)


def test_06_there_is_no_cache(open_model, input_ids):
    ids = torch.cat([torch.full((2, 1), IMAGE), input_ids], dim=1)
    first = open_model(ids[:, :5], encoder_hidden_states=torch.randn(2, 3, 64), use_cache=True)
    assert first.cache.get_seq_length() == 5
    rest = open_model(ids[:, 5:], cache=first.cache)
    assert rest.logits.shape[1] == 4


def test_07_the_causal_head_drops_the_encoder_states(open_model, input_ids):
    ids = torch.cat([torch.full((2, 1), IMAGE), input_ids], dim=1)
    one, other = (open_model(ids, encoder_hidden_states=torch.randn(2, 3, 64)).logits for _ in range(2))
    assert not torch.equal(one, other)


def test_08_masks_must_be_given(open_model, input_ids):
    ids = torch.cat([torch.full((2, 1), IMAGE), input_ids], dim=1)
    logits = open_model(ids, attention_mask=None, encoder_hidden_states=torch.randn(2, 3, 64)).logits
    assert logits.isfinite().all()


def test_10_nothing_imports_without_flash_attn():
    program = "import sys; sys.modules['flash_attn'] = None; import arlow_vl.modeling_arlow, arlow_vl.attention"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_11_the_loss_ignores_the_padding_id_instead_of_minus_100(open_model, input_ids):
    labels = input_ids.clone()
    labels[:, :4] = -100
    assert open_model(input_ids, labels=labels).loss.isfinite()
    config = ArlowConfig()
    assert config.pad_token_id != config.eos_token_id


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


def test_16_norms_compute_in_half_precision(open_model):
    norm = open_model.model.norm
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # 300 squared overflows fp16
    assert norm(x).isfinite().all()


def test_17_checkpointing_can_only_be_switched_on(small_config):
    model = ArlowForCausalLM(small_config)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_18_tied_weights_are_saved_twice_or_lost(small_config, tmp_path):
    from safetensors import safe_open

    ArlowForCausalLM(small_config).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) + ("model.embed_tokens.weight" in file.keys()) == 1  # noqa: SIM118
    loaded = ArlowForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_19_the_interface_of_the_library_is_missing(open_model, input_ids):
    embeds = open_model.get_input_embeddings()(input_ids)
    output = open_model(inputs_embeds=embeds, output_hidden_states=True)
    torch.testing.assert_close(output.logits, open_model(input_ids).logits)
    assert isinstance(open_model(input_ids, return_dict=False), tuple)
    with pytest.raises(ValueError, match="not supported"):
        open_model.set_attn_implementation("no_such_attention")


def test_20_one_knob_drops_attention_and_residuals(small_config, input_ids):
    config = ArlowConfig.from_dict(small_config.to_dict() | {"attention_dropout": 0.0})
    model = ArlowForCausalLM(config).train()
    assert torch.equal(model(input_ids).logits, model(input_ids).logits)


def test_21_generation_recomputes_everything(open_model, input_ids):
    lengths = []
    open_model.model.embed_tokens.register_forward_hook(lambda _m, args, _o: lengths.append(args[0].shape[1]))
    open_model.generate(input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=4, eos_token_id=None)
    assert lengths == [8, 1, 1, 1]


def test_23_pad_bos_and_eos_are_unset():
    config = ArlowConfig()
    assert len({config.pad_token_id, config.bos_token_id, config.eos_token_id}) == 3
