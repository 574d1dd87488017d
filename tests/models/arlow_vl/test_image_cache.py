"""Images in the cache: static caches, both rules of sight, flat images, tables made by hand."""

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import StaticCache

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow.segments import SegmentTable
from tests.conftest import open_gates

IMAGE = 7


def text(*shape: int) -> torch.Tensor:
    return torch.randint(10, 300, shape)


@pytest.fixture
def batch():
    """Three rows: two image groups, one, none; images of 5 encoder tokens."""
    input_ids = text(3, 12)
    input_ids[0, 2] = input_ids[0, 3] = input_ids[0, 7] = input_ids[1, 4] = IMAGE
    return input_ids, torch.randn(4, 5, 64)


@pytest.fixture(params=["last_group", "all_previous"])
def model(request, small_config):
    small_config.cross_attention_sees = request.param
    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    return model


def greedy_without_cache(model, input_ids, steps: int, **images) -> torch.Tensor:
    for _ in range(steps):
        logits = model(input_ids, use_cache=False, **images).logits
        input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], dim=1)
    return input_ids


@pytest.mark.parametrize("static", [False, True])
def test_generation_over_a_cache_equals_generation_without(model, batch, static):
    input_ids, images = batch
    cache = {"cache": StaticCache(model.config, max_cache_len=20)} if static else {}
    generated = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        encoder_hidden_states=images,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        **cache,
    )
    assert torch.equal(generated, greedy_without_cache(model, input_ids, 8, encoder_hidden_states=images))


def test_beams_over_a_static_cache_equal_beams_without(model, batch):
    input_ids, images = batch
    settings = {
        "attention_mask": torch.ones_like(input_ids),
        "encoder_hidden_states": images,
        "max_new_tokens": 5,
        "num_beams": 3,
        "do_sample": False,
    }
    static = model.generate(input_ids, cache_implementation="static", **settings)
    assert torch.equal(static, model.generate(input_ids, use_cache=False, **settings))


def test_later_turns_bring_images_to_some_rows(model, batch):
    input_ids, images = batch
    more, another = text(3, 5), torch.randn(2, 5, 64)
    more[0, 2] = more[2, 1] = IMAGE
    last = text(3, 2)
    cache = model(input_ids, encoder_hidden_states=images, use_cache=True).cache
    second = model(more, cache=cache, encoder_hidden_states=another)
    third = model(last, cache=cache)
    whole = torch.cat([input_ids, more, last], 1)
    in_order = torch.stack([*images[:3], another[0], images[3], another[1]])
    expected = model(whole, encoder_hidden_states=in_order).logits
    torch.testing.assert_close(torch.cat([second.logits, third.logits], 1), expected[:, 12:])


def test_only_the_keys_that_a_later_token_sees_are_kept(model, batch):
    input_ids, images = batch
    cache = model(input_ids, encoder_hidden_states=images, use_cache=True).cache
    lengths = {"last_group": [5, 5, 0], "all_previous": [15, 5, 0]}[model.config.cross_attention_sees]
    assert cache.layers[-1].lengths.tolist() == lengths
    assert cache.layers[-1].keys.shape == (3, max(lengths), 2, 16)


def test_images_are_projected_once(model, batch):
    input_ids, images = batch
    calls = []
    model.model.layers[1].cross_block.attn.k_proj.register_forward_hook(lambda *_: calls.append(1))
    model.generate(input_ids, encoder_hidden_states=images, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert len(calls) == 1


def test_the_rules_agree_where_a_document_has_one_group(small_config):
    models = []
    for rule in ("last_group", "all_previous"):
        small_config.cross_attention_sees = rule
        torch.manual_seed(0)
        models.append(ArlowForCausalLM(small_config).eval())
        open_gates(models[-1])
    input_ids, images = text(2, 9), torch.randn(3, 5, 64)
    input_ids[0, 2] = input_ids[0, 3] = input_ids[1, 5] = IMAGE
    first, second = (model(input_ids, encoder_hidden_states=images).logits for model in models)
    torch.testing.assert_close(first, second)


def test_the_rules_differ_where_a_second_group_comes(model, batch):
    input_ids, images = batch
    changed = images.clone()
    changed[0] += 1  # row 0's first group
    block = model.model.layers[1].cross_block
    seen = []
    block.register_forward_hook(lambda _m, _args, out: seen.append(out))
    model(input_ids, encoder_hidden_states=images)
    model(input_ids, encoder_hidden_states=changed)
    differs = (seen[0] != seen[1]).any(-1)
    assert differs[0, 3:7].all() and not differs[0, :3].any() and not differs[1:].any()
    assert differs[0, 7:].all() == differs[0, 7:].any() == (model.config.cross_attention_sees == "all_previous")


def test_text_that_sees_no_image_is_untouched_under_both_rules(model, batch):
    input_ids, images = batch
    without, seeing = model(input_ids).logits, model(input_ids, encoder_hidden_states=images).logits
    assert torch.equal(without[0, :3], seeing[0, :3])
    assert torch.equal(without[1, :4], seeing[1, :4])
    assert torch.equal(without[2], seeing[2])


def test_packed_documents_keep_their_images_to_themselves(model):
    first, second, images = text(1, 6), text(1, 7), torch.randn(2, 5, 64)
    first[0, 1] = second[0, 2] = IMAGE
    packed = torch.cat([first, second], 1)
    positions = torch.tensor([[*range(6), *range(7)]])
    together = model(packed, position_ids=positions, encoder_hidden_states=images, use_cache=False).logits
    torch.testing.assert_close(together[:, :6], model(first, encoder_hidden_states=images[:1]).logits)
    torch.testing.assert_close(together[:, 6:], model(second, encoder_hidden_states=images[1:]).logits)


def test_flat_images_of_different_length_equal_padded_ones(model, batch):
    input_ids, images = batch
    lengths = torch.tensor([5, 2, 4, 3])
    mask = torch.arange(5) < lengths[:, None]
    padded = model(input_ids, encoder_hidden_states=images, encoder_attention_mask=mask)
    of_lengths = {"encoder_hidden_states": images[mask], "encoder_lengths": lengths}
    assert torch.equal(padded.logits, model(input_ids, **of_lengths).logits)
    settings = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    padded = {"encoder_hidden_states": images, "encoder_attention_mask": mask}
    assert torch.equal(
        model.generate(input_ids, **padded, **settings), model.generate(input_ids, **of_lengths, **settings)
    )


def test_images_beside_embeddings_are_placed_by_a_table_made_by_hand(open_model):
    input_ids, image = text(1, 6), torch.randn(1, 5, 64)
    input_ids[0, 2] = IMAGE
    expected = open_model(input_ids, encoder_hidden_states=image).logits
    embeds = open_model.get_input_embeddings()(input_ids)
    segments = SegmentTable.of_pairs([((2, 6), (0, 5))], batch=1, width=6, encoder_tokens=5)
    actual = open_model(inputs_embeds=embeds, encoder_hidden_states=image, segments=segments).logits
    assert torch.equal(actual, expected)
    with pytest.raises(ValueError, match="with inputs_embeds give segments"):
        open_model(inputs_embeds=embeds + 1, encoder_hidden_states=image)


def test_images_beside_embeddings_are_placed_by_those_of_image_tokens(model, batch):
    input_ids, images = batch
    embeds = model.get_input_embeddings()(input_ids)
    expected = model(input_ids, encoder_hidden_states=images).logits
    assert torch.equal(model(inputs_embeds=embeds, encoder_hidden_states=images).logits, expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_from_embeddings_with_images_equals_that_from_ids(model, batch, beams):
    input_ids, images = batch
    settings = {"encoder_hidden_states": images, "attention_mask": torch.ones_like(input_ids), "num_beams": beams}
    settings |= {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    embeds = model.get_input_embeddings()(input_ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **settings), model.generate(input_ids, **settings)[:, 12:])


def test_an_assistant_sees_the_images_too(model, batch):
    input_ids, images = batch[0][:1], batch[1][:3]
    settings = {"encoder_hidden_states": images, "attention_mask": torch.ones_like(input_ids), "do_sample": False}
    settings |= {"max_new_tokens": 8, "eos_token_id": None}
    expected, assistant, calls = model.generate(input_ids, **settings), copy.deepcopy(model), []
    assistant.model.layers[1].cross_block.attn.k_proj.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model.generate(input_ids, **settings, assistant_model=assistant), expected)
    assert len(calls) == 1


def test_a_group_of_images_is_not_parted_by_the_end_of_a_call(model, batch):
    input_ids, images = batch
    with_the_rest = {"encoder_hidden_states": images[[1, 2, 3]]}
    cache = model(input_ids[:, :3], encoder_hidden_states=images[:1], use_cache=True).cache
    with pytest.raises(ValueError, match="row 0 begins with <image> and the text in the cache ends with one"):
        model(input_ids[:, 3:], cache=cache, **with_the_rest)
    cache = model(input_ids[:, :4], encoder_hidden_states=images[:2], use_cache=True).cache
    expected = model(input_ids, encoder_hidden_states=images).logits[:, 4:]
    rest = model(input_ids[:, 4:], cache=cache, encoder_hidden_states=images[2:]).logits
    torch.testing.assert_close(rest, expected)


def test_behind_a_word_or_in_another_row_an_image_begins_a_group(model, batch):
    input_ids, images = batch
    input_ids = input_ids.clone()
    input_ids[0, 3], input_ids[1, 3], input_ids[1, 4] = 30, IMAGE, 30
    order = images[[0, 1, 2]]  # row 0 ends with one, row 1 begins with one
    cache = model(input_ids[:, :3], encoder_hidden_states=images[:1], use_cache=True).cache
    rest = model(input_ids[:, 3:], cache=cache, encoder_hidden_states=images[[1, 2]]).logits
    torch.testing.assert_close(rest, model(input_ids, encoder_hidden_states=order).logits[:, 3:])
    cache = model(input_ids[:1, :3], encoder_hidden_states=images[:1], use_cache=True).cache
    model(text(1, 2), cache=cache)
    assert model(torch.tensor([[IMAGE, 30]]), cache=cache, encoder_hidden_states=images[1:2]).logits.isfinite().all()


def test_an_image_without_tokens_is_seen_as_nothing_over_a_cache_too(small_config):
    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    input_ids, images = text(1, 9), torch.randn(2, 5, 64)
    input_ids[0, 1] = input_ids[0, 5] = IMAGE
    mask = torch.tensor([[1] * 5, [0] * 5])
    cache = model(input_ids[:, :4], encoder_hidden_states=images[:1], use_cache=True).cache
    empty = {"encoder_hidden_states": images[1:], "encoder_attention_mask": mask[1:]}
    second = model(input_ids[:, 4:7], cache=cache, **empty).logits
    third = model(input_ids[:, 7:], cache=cache).logits
    whole = model(input_ids, encoder_hidden_states=images, encoder_attention_mask=mask).logits
    torch.testing.assert_close(torch.cat([second, third], 1), whole[:, 4:])


# Compiled code cannot be traced through the import hook that checks the tests' annotations: a process without it.
COMPILED_DECODE = """
    import torch
    from transformers import StaticCache
    from arlow_vl import ArlowConfig, ArlowForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ArlowConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, cross_attention_interval=1, cross_attention_sees="{rule}",
    )
    model = ArlowForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(0.7)
    ids, images = torch.randint(10, 300, (2, 8)), torch.randn(2, 5, 64)
    ids[0, 1] = ids[0, 4] = 7

    def generate(step):
        cache = StaticCache(config, max_cache_len=16)
        token = model(ids, encoder_hidden_states=images, cache=cache).logits[:, -1:].argmax(-1)
        tokens = [token]
        for i in range(6):
            token = step(input_ids=token, position_ids=torch.full((2, 1), 8 + i), cache=cache).logits[:, -1:].argmax(-1)
            tokens.append(token)
        return torch.cat(tokens, 1)

    with torch.no_grad():
        expected = generate(model)
        torch._dynamo.config.error_on_recompile = True
        compiled = generate(torch.compile(model, fullgraph=True, backend="eager"))
    assert torch.equal(compiled, expected), (compiled, expected)
"""


@pytest.mark.parametrize("rule", ["last_group", pytest.param("all_previous", marks=pytest.mark.slow)])
def test_the_decode_step_with_images_compiles_once_and_whole(rule):
    code = textwrap.dedent(COMPILED_DECODE).replace("{rule}", rule)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
