"""What the decoder must do as a language model, and what its gated cross-attention must never do."""

import pytest
import torch
from transformers import StaticCache

from arlow_vl.models.arlow.layers_arlow import ArlowRMSNorm, apply_rotary, rotary_factors
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from tests.conftest import open_gates

IMAGE = 7


def text(*shape: int) -> torch.Tensor:
    return torch.randint(20, 300, shape)


def text_with_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Row 0: text, image, text. Row 1: two images as one group. Row 2: no image."""
    input_ids = text(3, 12)
    input_ids[0, 2] = input_ids[1, 3] = input_ids[1, 4] = IMAGE
    return input_ids, torch.randn(3, 5, 64)


def test_a_token_never_changes_the_logits_before_it(open_model):
    input_ids = text(1, 10)
    changed = input_ids.clone()
    changed[0, 6] = 19
    before, after = open_model(input_ids).logits, open_model(changed).logits
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(open_model, side):
    input_ids, pad = text(1, 6), torch.full((1, 3), 3)
    parts, mask = [pad, input_ids], [torch.zeros(1, 3), torch.ones(1, 6)]
    if side == "right":
        parts, mask = parts[::-1], mask[::-1]
    padded = open_model(torch.cat(parts, 1), attention_mask=torch.cat(mask, 1).long()).logits
    where = slice(3, None) if side == "left" else slice(0, 6)
    torch.testing.assert_close(padded[:, where], open_model(input_ids).logits)


def test_packed_documents_equal_one_document_at_a_time(open_model):
    first, second = text(1, 5), text(1, 7)
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = open_model(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, :5], open_model(first).logits)
    torch.testing.assert_close(packed[:, 5:], open_model(second).logits)


def test_packed_documents_do_not_see_each_others_images(open_model):
    first, second = text(1, 5), text(1, 7)
    first[0, 1], second[0, 2] = IMAGE, IMAGE
    images = torch.randn(2, 4, 64)
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = open_model(
        torch.cat([first, second], 1), position_ids=positions, encoder_hidden_states=images, use_cache=False
    ).logits
    torch.testing.assert_close(packed[:, :5], open_model(first, encoder_hidden_states=images[:1]).logits)
    torch.testing.assert_close(packed[:, 5:], open_model(second, encoder_hidden_states=images[1:]).logits)


@pytest.mark.parametrize("with_images", [False, True])
def test_cached_generation_equals_uncached(open_model, with_images):
    input_ids, images = text_with_images()
    images = {"encoder_hidden_states": images} if with_images else {}
    generated = open_model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        **images,
    )
    uncached = input_ids
    for _ in range(8):
        logits = open_model(uncached, use_cache=False, **images).logits
        uncached = torch.cat([uncached, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, uncached)


@pytest.mark.parametrize("with_images", [False, True])
def test_beam_search_with_a_cache_equals_beam_search_without(open_model, with_images):
    input_ids, images = text_with_images()
    settings = {
        "attention_mask": torch.ones_like(input_ids),
        "max_new_tokens": 6,
        "num_beams": 3,
        "do_sample": False,
    }
    if with_images:
        settings["encoder_hidden_states"] = images
    cached = open_model.generate(input_ids, use_cache=True, **settings)
    assert torch.equal(cached, open_model.generate(input_ids, use_cache=False, **settings))


def test_a_static_cache_equals_a_dynamic_one(open_model):
    input_ids = text(2, 6)
    settings = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 6, "do_sample": False}
    static = open_model.generate(input_ids, cache=StaticCache(open_model.config, max_cache_len=16), **settings)
    assert torch.equal(static, open_model.generate(input_ids, **settings))


def test_left_padded_rows_with_images_generate_as_they_do_alone(open_model):
    input_ids, images = text_with_images()
    alone = open_model.generate(
        input_ids[:1],
        attention_mask=torch.ones(1, 12).long(),
        encoder_hidden_states=images[:1],
        max_new_tokens=6,
        do_sample=False,
    )
    padded = torch.full((2, 15), 3)
    padded[0, 3:], padded[1] = input_ids[0], text(15)
    mask = (torch.arange(15) >= torch.tensor([[3], [0]])).long()
    together = open_model.generate(
        padded, attention_mask=mask, encoder_hidden_states=images[:1], max_new_tokens=6, do_sample=False
    )
    assert torch.equal(together[0, 3:], alone[0])


def test_a_later_turn_brings_another_image(open_model):
    input_ids, images = text_with_images()
    more, another = text(3, 5), torch.randn(1, 9, 64)
    more[0, 2] = IMAGE
    first = open_model(input_ids, encoder_hidden_states=images, use_cache=True)
    second = open_model(more, cache=first.cache, encoder_hidden_states=another, use_cache=True)
    third = open_model(more.flip(1)[:, :2], cache=second.cache)

    everything, mask = torch.zeros(4, 9, 64), torch.zeros(4, 9)
    for i, image in enumerate((images[0], another[0], images[1], images[2])):
        everything[i, : len(image)], mask[i, : len(image)] = image, 1
    whole = torch.cat([input_ids, more, more.flip(1)[:, :2]], dim=1)
    expected = open_model(whole, encoder_hidden_states=everything, encoder_attention_mask=mask).logits
    torch.testing.assert_close(torch.cat([second.logits, third.logits], 1), expected[:, 12:])


def test_closed_gates_leave_every_bit_of_the_text_model(small_config):
    model = ArlowForCausalLM(small_config).eval()
    input_ids, images = text_with_images()
    assert torch.equal(model(input_ids).logits, model(input_ids, encoder_hidden_states=images).logits)


def test_text_in_front_of_an_image_and_rows_without_one_are_untouched_by_it(open_model):
    input_ids, images = text_with_images()
    without, with_images = (
        open_model(input_ids).logits,
        open_model(input_ids, encoder_hidden_states=images).logits,
    )
    assert torch.equal(without[0, :2], with_images[0, :2])
    assert torch.equal(without[1, :4], with_images[1, :4])
    assert torch.equal(without[2], with_images[2])
    assert ((without[0, 2:] - with_images[0, 2:]).abs().amax(-1) > 1e-4).all()


def test_a_token_sees_only_the_last_group_directly(open_model):
    block = open_model.model.layers[1].cross_block
    seen = []
    block.attn.register_forward_hook(lambda _m, args, _out: seen.append(args[2].key_runs.lengths.tolist()))
    input_ids = text(1, 8)
    input_ids[0, 1] = input_ids[0, 4] = input_ids[0, 5] = IMAGE
    open_model(input_ids, encoder_hidden_states=torch.randn(3, 5, 64))
    assert seen == [[5, 10]]


def test_only_gates_have_a_gradient_while_they_are_closed(small_config):
    model = ArlowForCausalLM(small_config)
    input_ids, images = text_with_images()
    model(input_ids, encoder_hidden_states=images, labels=input_ids).loss.backward()
    for name, parameter in model.named_parameters():
        if "cross_block" in name:
            assert parameter.grad.any() == name.endswith("_gate"), name


def test_masked_encoder_tokens_have_no_influence(open_model):
    input_ids, images = text_with_images()
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    torch.testing.assert_close(
        open_model(input_ids, encoder_hidden_states=images, encoder_attention_mask=mask).logits,
        open_model(input_ids, encoder_hidden_states=images[:, :3]).logits,
    )


def test_checkpointing_changes_neither_loss_nor_gradients(small_config):
    model = ArlowForCausalLM(small_config).train()
    open_gates(model)
    input_ids, images = text_with_images()

    def loss_and_gradients():
        model.zero_grad()
        leaf = images.clone().requires_grad_()
        loss = model(input_ids, encoder_hidden_states=leaf, labels=input_ids, use_cache=False).loss
        loss.backward()
        return loss, leaf.grad, model.model.layers[0].mlp.up_proj.weight.grad.clone()

    plain = loss_and_gradients()
    model.gradient_checkpointing_enable()
    for expected, actual in zip(plain, loss_and_gradients(), strict=True):
        assert torch.equal(expected, actual)


def test_labels_of_minus_100_do_not_count(open_model):
    input_ids = text(1, 8)
    labels = input_ids.clone()
    labels[:, :5] = -100
    loss = open_model(input_ids, labels=labels).loss
    logits = open_model(input_ids).logits[0, 4:-1]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, input_ids[0, 5:]))


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([2, 5]), torch.tensor([[1, 2], [3, 4]])])
def test_only_the_asked_logits_are_computed(open_model, keep):
    input_ids = text(2, 8)
    full, kept = open_model(input_ids).logits, open_model(input_ids, logits_to_keep=keep).logits
    if isinstance(keep, int):
        expected = full[:, -keep:]
    elif keep.ndim == 1:
        expected = full[:, keep]
    else:
        expected = full.take_along_dim(keep[..., None], dim=1)
    torch.testing.assert_close(kept, expected)


def test_embedding_and_head_stay_one_tensor_through_save_load_and_resize(small_config, tmp_path):
    model = ArlowForCausalLM(small_config)
    model.save_pretrained(tmp_path)
    loaded = ArlowForCausalLM.from_pretrained(tmp_path)
    loaded.resize_token_embeddings(310)
    for tied in (model, loaded):
        assert tied.lm_head.weight.data_ptr() == tied.model.embed_tokens.weight.data_ptr()
    assert loaded.lm_head.weight.shape[0] == 310


def test_saving_and_loading_keeps_every_logit(open_model, tmp_path):
    open_model.save_pretrained(tmp_path)
    input_ids, images = text_with_images()
    loaded = ArlowForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(
        loaded(input_ids, encoder_hidden_states=images).logits,
        open_model(input_ids, encoder_hidden_states=images).logits,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_has_one_dtype_and_computes_its_gates_in_float32(small_config, tmp_path, dtype):
    ArlowForCausalLM(small_config).save_pretrained(tmp_path)
    loaded = ArlowForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}  # FSDP2 shards no other
    block = loaded.model.layers[1].cross_block
    block.attn_gate.data.fill_(0.1)
    block.attn.forward = block.mlp.forward = lambda states, *_: torch.full_like(states, 3)
    read = block._read(torch.zeros(1, 64, dtype=dtype))
    assert torch.equal(read, (block.attn_gate.float().tanh() * 3).to(dtype).expand(1, 64))


def test_matrices_that_write_into_the_residual_stream_start_smaller(small_config):
    layer = ArlowForCausalLM(small_config).model.layers[1]
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_cross_block_whose_gates_are_closed_starts_at_full_size(small_config):
    block = ArlowForCausalLM(small_config).model.layers[1].cross_block
    for projection in (block.attn.o_proj, block.mlp.down_proj):
        assert projection.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_right_to_the_rounding_of_its_dtype(dtype):
    norm = ArlowRMSNorm(48)
    norm.weight.data.uniform_(0.5, 2)
    x = (torch.randn(4, 48) * 30).to(dtype)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    # float32 statistics of 48 channels are themselves off by a few roundings; one rounding to bf16 hides them
    roundings = 4 if dtype == torch.float32 else 1
    torch.testing.assert_close(norm(x).double(), exact, atol=0, rtol=roundings * torch.finfo(dtype).eps)


def test_rotary_embedding_keeps_norms_and_sees_only_distances(open_model):
    rotary = open_model.model.rotary_emb
    states = torch.randn(1, 1, 1, 16).expand(1, 1, 50, 16)
    turned = apply_rotary(states, *rotary_factors(*rotary(states, torch.arange(50)[None])))
    torch.testing.assert_close(turned.norm(dim=-1), states.norm(dim=-1))
    scores = turned[0, 0] @ turned[0, 0].T
    for distance in (1, 7, 30):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        (
            {"input_ids": torch.ones(1, 3).long(), "encoder_hidden_states": torch.zeros(1, 2, 64)},
            "1 image for 0 <image>",
        ),
        (
            {"inputs_embeds": torch.zeros(1, 3, 64), "encoder_hidden_states": torch.zeros(1, 2, 64)},
            "placed by the <image>",
        ),
    ],
)
def test_inputs_that_cannot_be_meant_are_refused(open_model, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_model(**arguments)


def test_a_text_model_without_cross_blocks_refuses_images(small_config):
    config = type(small_config).from_dict(small_config.to_dict() | {"use_cross_attention": False})
    model = ArlowForCausalLM(config)
    assert not any("cross" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="use_cross_attention False"):
        model(torch.full((1, 2), IMAGE), encoder_hidden_states=torch.zeros(2, 2, 64))


def test_hidden_states_and_attentions_come_out_on_request(open_model):
    open_model.set_attn_implementation("eager")
    output = open_model(text(2, 6), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 5
    assert [a.shape for a in output.attentions] == [(2, 4, 6, 6)] * 4
