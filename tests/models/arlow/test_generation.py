"""Generation: whatever holds the keys and values, and however the text comes in, the tokens are the same."""

import copy
import importlib.util

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StaticCache, set_seed
from transformers.cache_utils import DynamicCache

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from tests.conftest import open_gates

IMAGE = 7
DECODING = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 30, "temperature": 1.5},
}
HAS_QUANTO = importlib.util.find_spec("optimum") is not None


@pytest.fixture
def model(small_config):
    """A decoder whose weights are large enough to say something else at every step."""
    small_config.initializer_range = 0.2
    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    return model


@pytest.fixture
def prompts():
    """Two rows, the first padded on the left by three."""
    input_ids = torch.randint(20, 300, (2, 9))
    mask = torch.ones_like(input_ids)
    input_ids[0, :3], mask[0, :3] = 3, 0
    return {"input_ids": input_ids, "attention_mask": mask}


def tokens(model, inputs, **settings) -> torch.Tensor:
    set_seed(1)
    return model.generate(**inputs, max_new_tokens=8, eos_token_id=None, **settings)


@pytest.mark.parametrize("decoding", DECODING)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_every_cache_gives_the_tokens_of_no_cache(model, prompts, decoding, cache):
    expected = tokens(model, prompts, use_cache=False, **DECODING[decoding])
    assert len(expected[:, 9:].unique()) > 8  # or any cache would do
    cached = tokens(model, prompts, cache_implementation=cache, **DECODING[decoding])
    assert torch.equal(cached, expected)


@pytest.mark.parametrize("decoding", DECODING)
def test_a_static_cache_holds_text_beside_images(model, prompts, decoding):
    prompts["input_ids"][0, 4] = prompts["input_ids"][1, 2] = IMAGE
    inputs = prompts | {"encoder_hidden_states": torch.randn(2, 5, 64)}
    expected = tokens(model, inputs, use_cache=False, **DECODING[decoding])
    assert torch.equal(tokens(model, inputs, cache_implementation="static", **DECODING[decoding]), expected)


@pytest.mark.skipif(not HAS_QUANTO, reason="transformers quantises a cache by optimum-quanto, which is not here")
def test_a_quantised_cache_holds_the_text(model, prompts):
    settings = {"backend": "quanto", "nbits": 4, "q_group_size": 16, "axis_key": 0, "axis_value": 0}
    cached = tokens(model, prompts, cache_implementation="quantized", cache_config=settings, do_sample=False)
    expected = tokens(model, prompts, do_sample=False)
    assert torch.equal(cached[:, :10], expected[:, :10])  # the first token reads what is not yet rounded


def test_a_static_cache_stays_compileable_with_images_in_it(model, prompts):
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(**prompts, cache=cache)
    assert cache.is_compileable
    first_image = torch.full((2, 1), IMAGE)
    model(first_image, cache=cache, encoder_hidden_states=torch.randn(2, 5, 64))
    assert cache.is_compileable


def test_a_left_padded_row_writes_what_it_writes_alone(model, prompts):
    together = tokens(model, prompts, **DECODING["greedy"])
    alone = tokens(model, {"input_ids": prompts["input_ids"][:1, 3:]}, **DECODING["greedy"])
    assert torch.equal(together[0, 3:], alone[0])


def test_embeddings_stand_in_for_their_ids(model, prompts):
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(prompts["input_ids"]),
        "attention_mask": prompts["attention_mask"],
    }
    torch.testing.assert_close(model(**embedded).logits, model(**prompts).logits)
    assert torch.equal(tokens(model, embedded, do_sample=False), tokens(model, prompts, do_sample=False)[:, 9:])


def test_positions_that_are_given_count_by_their_distances(model):
    input_ids = torch.randint(20, 300, (2, 9))
    positions = torch.arange(9)[None]
    expected = model(input_ids).logits
    assert torch.equal(model(input_ids, position_ids=positions).logits, expected)
    # the angles of positions 100 apart are rounded elsewhere
    torch.testing.assert_close(model(input_ids, position_ids=positions + 100).logits, expected, atol=1e-4, rtol=1e-4)
    stretched = model(input_ids, position_ids=positions * 2).logits
    assert (stretched[:, 2:] - expected[:, 2:]).abs().amax() > 0.01


def test_text_handed_in_by_pieces_reads_as_a_whole(model):
    input_ids = torch.randint(20, 300, (2, 10))
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, cache=cache).logits for piece in input_ids.split([4, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(input_ids).logits)


def test_an_assistant_of_fewer_layers_changes_no_token(model, prompts, small_config):
    shallow = type(small_config).from_dict(small_config.to_dict() | {"num_hidden_layers": 2})
    assistant = ArlowForCausalLM(shallow).eval()
    alone = {"input_ids": prompts["input_ids"][1:], "attention_mask": prompts["attention_mask"][1:]}
    assisted = tokens(model, alone, do_sample=False, assistant_model=assistant)
    assert torch.equal(assisted, tokens(model, alone, do_sample=False))


class AllowsOnly(LogitsProcessor):
    """A processor of the user's own that wants a token more than any other."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, IMAGE] = 1e4
        return scores


def likes_image_tokens(model) -> None:
    """Whatever the text, `<image>` is the likeliest next token."""
    head = torch.nn.Linear(64, 300)
    head.weight.data = model.lm_head.weight.data.clone()
    head.bias.data.zero_()[IMAGE] = 1e3
    model.lm_head = head


SETTINGS_THAT_FORGET_IT = {
    "nothing": {},
    "suppress_tokens": {"suppress_tokens": [30]},
    "no suppress_tokens": {"suppress_tokens": None},
    "a generation config": {"generation_config": GenerationConfig(suppress_tokens=[30], pad_token_id=3)},
    "a bias": {"sequence_bias": {(IMAGE,): 1e4}},
    "a processor": {"logits_processor": LogitsProcessorList([AllowsOnly()])},
    "top_k": {"do_sample": True, "top_k": 1},
    "top_p": {"do_sample": True, "top_p": 0.1},
    "normalised": {"do_sample": True, "renormalize_logits": True},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "constrained": {"prefix_allowed_tokens_fn": lambda *_: [IMAGE, 40]},
}


@pytest.mark.parametrize("settings", SETTINGS_THAT_FORGET_IT)
def test_no_image_token_is_ever_written_whatever_the_settings(model, prompts, settings):
    likes_image_tokens(model)
    written = model.generate(**prompts, max_new_tokens=5, **SETTINGS_THAT_FORGET_IT[settings])
    assert not (written[:, 9:] == IMAGE).any()


def test_a_model_without_images_may_write_that_id(small_config, prompts):
    config = type(small_config).from_dict(small_config.to_dict() | {"use_cross_attention": False})
    model = ArlowForCausalLM(config).eval()
    likes_image_tokens(model)
    assert (model.generate(**prompts, max_new_tokens=3, do_sample=False)[:, 9:] == IMAGE).all()


def test_prompt_lookup_never_drafts_an_image_token(model):
    """What the text ends with stood in front of an `<image>` before."""
    input_ids = torch.tensor([[20, 21, IMAGE, 22, 23, 20, 21]])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    inputs |= {"encoder_hidden_states": torch.randn(1, 5, 64)}
    expected = tokens(model, inputs, do_sample=False)
    assert torch.equal(tokens(model, inputs, do_sample=False, prompt_lookup_num_tokens=3), expected)


def test_an_assistant_that_likes_image_tokens_drafts_none(model, prompts):
    alone = {"input_ids": prompts["input_ids"][1:], "attention_mask": prompts["attention_mask"][1:]}
    alone["input_ids"][0, 2] = IMAGE
    alone["encoder_hidden_states"] = torch.randn(1, 5, 64)
    assistant = copy.deepcopy(model)
    likes_image_tokens(assistant)
    assisted = tokens(model, alone, do_sample=False, assistant_model=assistant)
    assert torch.equal(assisted, tokens(model, alone, do_sample=False))


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}])
def test_beams_of_a_row_whose_image_token_is_masked_bring_the_images_of_the_others(model, prompts, settings):
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    ids[0, 1] = ids[0, 5] = ids[1, 4] = IMAGE  # the first is padding
    inputs = prompts | {"encoder_hidden_states": torch.randn(2, 5, 64)}
    unmasked = ids.masked_fill(mask == 0, 3)
    expected = tokens(model, inputs | {"input_ids": unmasked}, **settings)
    assert torch.equal(tokens(model, inputs, **settings)[:, 9:], expected[:, 9:])


@pytest.mark.parametrize("come", ["all", "new"])
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
def test_beams_go_on_over_a_cache_with_all_images_or_those_of_the_new_turns(model, prompts, settings, come):
    prompts["input_ids"][0, 4] = prompts["input_ids"][1, 2] = IMAGE
    turn = torch.randint(20, 300, (2, 4))
    turn[:, 1] = IMAGE
    images = torch.randn(4, 5, 64)  # of row 0: first and new, of row 1 likewise
    cache = model(**prompts, encoder_hidden_states=images[[0, 2]], use_cache=True).cache
    cache.batch_repeat_interleave(3)
    whole = {
        "input_ids": torch.cat([prompts["input_ids"], turn], 1),
        "attention_mask": torch.cat([prompts["attention_mask"], torch.ones_like(turn)], 1),
    }
    expected = tokens(model, whole | {"encoder_hidden_states": images}, **settings)
    given = images if come == "all" else images[[1, 3]]
    assert torch.equal(tokens(model, whole | {"encoder_hidden_states": given, "cache": cache}, **settings), expected)


def test_beams_with_another_number_of_images_are_refused(model, prompts):
    prompts["input_ids"][0, 4] = IMAGE
    with pytest.raises(ValueError, match=r"got 2 images for 1 <image> token \(per row: \[1, 0\]\)"):
        tokens(model, prompts | {"encoder_hidden_states": torch.randn(2, 5, 64)}, num_beams=3)


@pytest.mark.parametrize("layers", [1, 2])
def test_drafts_of_the_first_layers_change_no_token(model, prompts, layers):
    prompts = {name: value[1:] for name, value in prompts.items()}
    prompts["input_ids"][0, 2] = IMAGE
    inputs = prompts | {"encoder_hidden_states": torch.randn(1, 5, 64)}
    expected = tokens(model, inputs)
    assert torch.equal(tokens(model, inputs, assistant_early_exit=layers), expected)
    assert torch.equal(tokens(model, inputs), expected)


def test_a_prompt_with_images_is_read_in_one_piece(model, prompts):
    plain = tokens(model, prompts, prefill_chunk_size=4)
    assert torch.equal(plain, tokens(model, prompts))
    prompts["input_ids"][0, 4] = IMAGE
    inputs = prompts | {"encoder_hidden_states": torch.randn(1, 5, 64)}
    assert torch.equal(tokens(model, inputs, prefill_chunk_size=9), tokens(model, inputs))
    with pytest.raises(ValueError, match="prefill_chunk_size splits a prompt"):
        tokens(model, inputs, prefill_chunk_size=4)
