"""One rule for documents, they start where positions restart: for text and images, every kernel, mask and cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface, StaticCache
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    flash_attention_mask,
    packed_sequence_mask_function,
    sdpa_mask,
)

from arlow_vl.models.arlow.attention import packed_causal_mask
from tests.models.arlow.test_attention_parity import varlen_by_definition

IMAGE = 7
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["sdpa", "arlow", "eager", "varlen"])


def text(*shape: int) -> torch.Tensor:
    return torch.randint(20, 300, shape)


@pytest.fixture
def logits_of(open_model, monkeypatch):
    def logits_of(implementation, *args, **kwargs):
        if implementation == "varlen":
            open_model.set_attn_implementation("arlow")
            with varlen_by_definition():
                return open_model(*args, **kwargs).logits
        open_model.set_attn_implementation(implementation)
        return open_model(*args, **kwargs).logits

    return logits_of


@IMPLEMENTATIONS
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("cache", ["none", "made", "empty", "static"])
def test_a_gap_in_the_positions_starts_no_document(logits_of, open_model, implementation, with_mask, cache):
    ids, positions = text(1, 8), torch.tensor([[0, 1, 2, 3, 10, 11, 12, 13]])
    causal = torch.ones(8, 8).tril().bool()[None, None]
    open_model.set_attn_implementation("sdpa")
    expected = open_model(ids, attention_mask=causal, position_ids=positions).logits
    given = {"attention_mask": torch.ones(1, 8)} if with_mask else {}
    given |= handed_in(cache, open_model.config)
    torch.testing.assert_close(logits_of(implementation, ids, position_ids=positions, **given), expected)


def handed_in(cache: str, config) -> dict:
    caches = {
        "none": lambda: {"use_cache": False},
        "made": lambda: {"use_cache": True},
        "empty": lambda: {"cache": DynamicCache(config=config)},
        "static": lambda: {"cache": StaticCache(config=config, max_cache_len=24)},
    }
    return caches[cache]()


@IMPLEMENTATIONS
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("cache", ["none", "made", "empty", "static"])
def test_positions_that_restart_part_text_and_images(logits_of, open_model, implementation, with_mask, cache):
    first, second, images = text(1, 5), text(1, 6), torch.randn(2, 4, 64)
    first[0, 1] = second[0, 3] = IMAGE
    positions = torch.tensor([[*range(5), *range(6)]])
    given = {"attention_mask": torch.ones(1, 11)} if with_mask else {}
    given |= {"position_ids": positions, "encoder_hidden_states": images} | handed_in(cache, open_model.config)
    packed = logits_of(implementation, torch.cat([first, second], 1), **given)
    torch.testing.assert_close(packed[:, :5], open_model(first, encoder_hidden_states=images[:1]).logits)
    torch.testing.assert_close(packed[:, 5:], open_model(second, encoder_hidden_states=images[1:]).logits)


def test_images_of_an_earlier_document_are_not_kept_for_what_follows(open_model):
    open_model.config.cross_attention_sees = "all_previous"
    ids, images = text(1, 9), torch.randn(3, 4, 64)
    ids[0, 1] = ids[0, 5] = ids[0, 7] = IMAGE
    positions = torch.tensor([[*range(4), *range(5)]])
    cache = open_model(ids, position_ids=positions, encoder_hidden_states=images, use_cache=True).cache
    alone = open_model(ids[:, 4:], encoder_hidden_states=images[1:], use_cache=True).cache
    assert cache.layers[-1].lengths.tolist() == alone.layers[-1].lengths.tolist() == [8]
    kept, expected = cache.layers[4], alone.layers[4]  # of the first block, where text has not mixed with images yet
    torch.testing.assert_close(kept.keys[:, :8], expected.keys)
    torch.testing.assert_close(kept.values[:, :8], expected.values)


@pytest.mark.parametrize("rule", ["last_group", "all_previous"])
@pytest.mark.parametrize("implementation", ["sdpa", "arlow", "eager"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_behind_a_cache_the_first_document_goes_on_and_the_next_sees_nothing_of_it(
    logits_of, open_model, rule, implementation, static, with_mask
):
    open_model.config.cross_attention_sees = rule
    begun, rest, other = text(1, 4), text(1, 3), text(1, 5)
    begun[0, 1] = IMAGE
    image = torch.randn(1, 4, 64)
    cache = handed_in("static" if static else "empty", open_model.config)["cache"]
    open_model(begun, cache=cache, encoder_hidden_states=image)
    positions = torch.tensor([[4, 5, 6, *range(5)]])
    given = {"attention_mask": torch.ones(1, 12)} if with_mask else {}
    packed = logits_of(implementation, torch.cat([rest, other], 1), position_ids=positions, cache=cache, **given)
    whole = open_model(torch.cat([begun, rest], 1), encoder_hidden_states=image).logits
    torch.testing.assert_close(packed[:, :3], whole[:, 4:])
    torch.testing.assert_close(packed[:, 3:], open_model(other).logits)
    assert cache.layers[-1].lengths.tolist() == [0]  # what comes next goes on with the second document


def test_a_flash_kernel_of_transformers_is_told_the_documents_and_looks_for_none(open_model):
    told = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        told.append(kwargs)
        return query.transpose(1, 2), None

    AttentionInterface.register("recording_flash", attention)
    AttentionMaskInterface.register("recording_flash", flash_attention_mask)
    open_model.config._attn_implementation = "recording_flash"  # by its name transformers would load a kernel
    open_model(text(1, 8), position_ids=torch.tensor([[0, 1, 2, 9, 10, 0, 1, 2]]), use_cache=False)
    assert told[0]["position_ids"] is None
    assert told[0]["cu_seq_lens_q"].tolist() == told[0]["cu_seq_lens_k"].tolist() == [0, 5, 8]
    assert told[0]["max_length_q"] == told[0]["max_length_k"] == 5
    open_model(text(1, 8), position_ids=torch.tensor([[0, 1, 2, 9, 10, 11, 12, 13]]), use_cache=False)
    assert told[-1]["position_ids"] is None and told[-1].get("cu_seq_lens_q") is None
    with pytest.raises(ValueError, match="'recording_flash' cannot part documents beside an attention_mask"):
        open_model(text(1, 4), position_ids=torch.tensor([[0, 1, 0, 1]]), attention_mask=torch.ones(1, 4))


@given(lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=40)
def test_the_mask_of_packed_rows_is_transformers_own(lengths):
    width = max(map(sum, lengths))
    rows = [[number for number, length in enumerate(row) for _ in range(length)] for row in lengths]
    documents = torch.tensor([row + [len(row)] * (width - len(row)) for row in rows])
    theirs = sdpa_mask(
        batch_size=len(rows),
        q_length=width,
        kv_length=width,
        mask_function=and_masks(causal_mask_function, packed_sequence_mask_function(documents)),
        allow_is_causal_skip=False,
    )
    assert torch.equal(packed_causal_mask(documents), theirs)
