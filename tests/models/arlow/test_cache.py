"""Images in a cache, whatever is done to it: turns of some rows, crops, copies, beams, checkpointing, drafts."""

import copy
import re

import pytest
import torch
from transformers import StaticCache
from transformers.cache_utils import DynamicCache

from arlow_vl.models.arlow.cache_arlow import CrossAttentionCacheLayer
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from tests.conftest import open_gates

IMAGE, PAD = 7, 3
OF_TORCH_2_11 = {"rtol": 3e-5, "atol": 2e-5}  # whose last digits differ more between a text in parts and whole


def text(*shape: int) -> torch.Tensor:
    return torch.randint(20, 300, shape)


@pytest.fixture(params=["last_group", "all_previous"])
def model(request, small_config):
    small_config.cross_attention_sees = request.param
    small_config.initializer_range = 0.2
    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    return model


@pytest.fixture
def images():
    return torch.randn(4, 5, 64)


def cross_layer(cache) -> CrossAttentionCacheLayer:
    return next(layer for layer in cache.layers if isinstance(layer, CrossAttentionCacheLayer))


def turns_of_two_rows(model, turns) -> torch.Tensor:
    """Feeds (ids, mask, images) turn by turn; the logits of all turns, one after another."""
    cache, mask, logits = DynamicCache(config=model.config), torch.zeros(2, 0), []
    for ids, is_text, arriving in turns:
        mask = torch.cat([mask, is_text], 1)
        logits.append(model(ids, attention_mask=mask, cache=cache, encoder_hidden_states=arriving).logits)
    return torch.cat(logits, 1)


def test_a_row_without_text_in_a_turn_keeps_its_image(model, images):
    """Row 1 is all padding in the second and the third turn, of which the second brings row 0 another image."""
    first, second, third, last = text(2, 4), text(2, 3), text(2, 2), text(2, 3)
    first[0, 1] = first[1, 2] = second[0, 1] = IMAGE
    second[1], third[1] = PAD, PAD
    words = torch.tensor([[1.0], [0.0]])
    turns = [
        (first, torch.ones(2, 4), images[:2]),
        (second, words.expand(2, 3), images[2:3]),
        (third, words.expand(2, 2), None),
        (last, torch.ones(2, 3), None),
    ]
    logits = turns_of_two_rows(model, turns)
    for row, alone, own in (
        (0, torch.cat([x[:1] for x in (first, second, third, last)], 1), images[[0, 2]]),
        (1, torch.cat([first[1:], last[1:]], 1), images[1:2]),
    ):
        expected = model(alone, encoder_hidden_states=own).logits[0, -3:]
        torch.testing.assert_close(logits[row, -3:], expected)


def test_the_lengths_of_a_row_without_text_stay(open_model, images):
    ids, more = torch.tensor([[20, IMAGE, 21], [22, IMAGE, 23]]), torch.tensor([[IMAGE, 24], [PAD, PAD]])
    cache = open_model(ids, encoder_hidden_states=images[:2], use_cache=True).cache
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    open_model(more, attention_mask=mask, cache=cache, encoder_hidden_states=images[2:3])
    assert cross_layer(cache).lengths.tolist() == [5, 5]


def test_a_row_without_text_keeps_its_image_where_no_row_sees_a_new_one(model, images):
    """The new image of row 0 has no tokens, so that no block runs in this turn under 'last_group'."""
    ids, more = torch.tensor([[20, IMAGE, 21], [22, IMAGE, 23]]), torch.tensor([[IMAGE, 24], [PAD, PAD]])
    cache = model(ids, encoder_hidden_states=images[:2], use_cache=True).cache
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    nothing = {"encoder_hidden_states": images[2:3], "encoder_attention_mask": torch.zeros(1, 5)}
    model(more, attention_mask=mask, cache=cache, **nothing)
    held = {"last_group": [0, 5], "all_previous": [5, 5]}[model.config.cross_attention_sees]
    assert cross_layer(cache).lengths.tolist() == held


def test_padding_between_two_images_does_not_part_their_group(model, images):
    whole = torch.tensor([[20, IMAGE, IMAGE, 21, 22]])
    holed = torch.tensor([[20, IMAGE, PAD, PAD, IMAGE, 21, PAD, 22]])
    mask = (holed != PAD).long()
    expected = model(whole, encoder_hidden_states=images[:2]).logits
    logits = model(holed, attention_mask=mask, encoder_hidden_states=images[:2]).logits
    torch.testing.assert_close(logits[:, mask[0].bool()], expected)


def test_a_group_is_parted_by_the_end_of_a_call_behind_padding_too(model, images):
    cache = DynamicCache(config=model.config)
    ids, mask = torch.tensor([[20, IMAGE, PAD]]), torch.tensor([[1, 1, 0]])
    model(ids, attention_mask=mask, cache=cache, encoder_hidden_states=images[:1])
    model(torch.tensor([[PAD]]), attention_mask=torch.tensor([[1, 1, 0, 0]]), cache=cache)  # another row's turn
    mask = torch.tensor([[1, 1, 0, 0, 0, 1, 1]])
    with pytest.raises(ValueError, match="row 0 begins with <image> and the text in the cache ends with one"):
        model(torch.tensor([[PAD, IMAGE, 21]]), attention_mask=mask, cache=cache, encoder_hidden_states=images[1:2])


@pytest.mark.parametrize("static", [False, True])
def test_a_crop_in_front_of_the_image_takes_the_image_back(model, images, static):
    ids, more = text(2, 9), text(2, 4)
    ids[0, 5] = ids[1, 2] = IMAGE
    cache = StaticCache(config=model.config, max_cache_len=16) if static else DynamicCache(config=model.config)
    model(ids, cache=cache, encoder_hidden_states=images[:2])
    cache.crop(-5)  # row 0 stands in front of its image, row 1 behind
    kept = torch.cat([ids[:, :4], more], 1)
    expected = model(kept, encoder_hidden_states=images[1:2]).logits[:, 4:]
    torch.testing.assert_close(model(more, cache=cache).logits, expected)
    with_new = text(2, 3)
    with_new[0, 0] = IMAGE
    whole = torch.cat([kept, with_new], 1)
    expected = model(whole, encoder_hidden_states=images[[2, 1]]).logits[:, 8:]
    torch.testing.assert_close(model(with_new, cache=cache, encoder_hidden_states=images[2:3]).logits, expected)


def test_a_crop_to_between_two_images_is_refused_until_it_is_in_front_of_both(model, images):
    ids, more = text(1, 10), text(1, 3)
    ids[0, 2] = ids[0, 6] = IMAGE
    cache = model(ids, encoder_hidden_states=images[:2], use_cache=True).cache
    cache.crop(-3)  # behind both
    torch.testing.assert_close(
        model(more, cache=cache).logits,
        model(torch.cat([ids[:, :7], more], 1), encoder_hidden_states=images[:2]).logits[:, 7:],
    )
    cache.crop(-5)
    with pytest.raises(ValueError, match="cropped to between two images of a row"):
        model(more, cache=cache)
    cache.crop(-3)
    torch.testing.assert_close(model(more, cache=cache).logits, model(torch.cat([ids[:, :2], more], 1)).logits[:, 2:])


def test_a_reset_cache_holds_no_image(model, images):
    ids, others = text(2, 6), text(2, 5)
    ids[:, 2] = IMAGE
    cache = model(ids, encoder_hidden_states=images[:2], use_cache=True).cache
    cache.reset()
    assert torch.equal(model(others, cache=cache).logits, model(others).logits)


@torch.no_grad()
def test_a_copied_prompt_goes_on_by_itself(model, images):
    """As a prompt that is read once and answered several times: neither copy nor original knows of the other."""
    ids, more, other = text(1, 6), text(1, 3), text(1, 3)
    ids[0, 2] = other[0, 0] = IMAGE
    prompt = model(ids, encoder_hidden_states=images[:1], use_cache=True).cache
    copied = copy.deepcopy(prompt)
    model(other, cache=copied, encoder_hidden_states=images[1:2])
    copied.crop(-8)
    expected = model(torch.cat([ids, more], 1), encoder_hidden_states=images[:1]).logits[:, 6:]
    torch.testing.assert_close(model(more, cache=prompt).logits, expected)


def test_rows_that_are_selected_or_repeated_take_their_images_along(model, images):
    ids, more = text(2, 6), text(2, 3)
    ids[0, 1] = ids[1, 4] = IMAGE
    cache = model(ids, encoder_hidden_states=images[:2], use_cache=True).cache
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    cache.crop(-3)  # what was row 1 is back in front of its image
    whole = torch.cat([ids.flip(0)[:, :3], more], 1)
    expected = model(whole, encoder_hidden_states=images[:1]).logits[:, 3:]
    torch.testing.assert_close(model(more, cache=cache).logits, expected)


def test_a_cache_without_layers_takes_images_in_its_first_call(model, images):
    ids, more = text(2, 6), text(2, 3)
    ids[:, 2] = IMAGE
    cache = DynamicCache()
    model(ids, cache=cache, encoder_hidden_states=images[:2])
    expected = model(torch.cat([ids, more], 1), encoder_hidden_states=images[:2]).logits[:, 6:]
    torch.testing.assert_close(model(more, cache=cache).logits, expected, **OF_TORCH_2_11)


def test_a_crop_behind_a_table_made_by_hand_takes_the_image_back(open_model, images):
    from arlow_vl.models.arlow.segments import SegmentTable

    ids, more = text(1, 6), text(1, 3)
    embeds = open_model.get_input_embeddings()(ids)
    segments = SegmentTable.of_pairs([((2, 6), (0, 5))], batch=1, width=6, encoder_tokens=5)
    inputs = {"inputs_embeds": embeds, "encoder_hidden_states": images[:1], "segments": segments}
    cache = open_model(**inputs, use_cache=True).cache
    cache.crop(-4)
    expected = open_model(torch.cat([ids[:, :2], more], 1)).logits[:, 2:]
    torch.testing.assert_close(open_model(more, cache=cache).logits, expected)


def test_checkpointing_with_an_empty_cache_handed_in_gives_the_gradients_without(model, images):
    ids = text(2, 6)
    ids[:, 2] = IMAGE
    inputs = {"input_ids": ids, "labels": ids, "encoder_hidden_states": images[:2]}
    model.train()
    model(**inputs, use_cache=False).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    cache = DynamicCache(config=model.config)
    model(**inputs, cache=cache).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
    assert cache.get_seq_length() == 0


def test_checkpointing_behind_a_filled_cache_is_refused(model, images):
    ids = text(2, 6)
    ids[:, 2] = IMAGE
    cache = model(ids, encoder_hidden_states=images[:2], use_cache=True).cache
    model.train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=re.escape("computes layers twice and cannot read the text in the cache")):
        model(text(2, 3), cache=cache)
    with torch.no_grad():
        model(text(2, 3), cache=cache)


def test_zero_images_beside_text_without_any_are_as_if_none_came(model, images):
    ids, more = text(2, 6), text(2, 3)
    for nothing in (
        {"encoder_hidden_states": images[:0]},
        {"encoder_hidden_states": images[:0].flatten(0, 1), "encoder_lengths": torch.zeros(0, dtype=torch.long)},
    ):
        output = model(ids, **nothing, use_cache=True)
        assert torch.equal(output.logits, model(ids).logits)
        assert len(output.cache.layers) == model.config.num_hidden_layers
        torch.testing.assert_close(
            model(more, cache=output.cache, **nothing).logits,
            model(torch.cat([ids, more], 1)).logits[:, 6:],
            **OF_TORCH_2_11,
        )
    with pytest.raises(ValueError, match=r"got 0 images for 1 <image> token "):
        model(torch.tensor([[20, IMAGE]]), encoder_hidden_states=images[:0])
