"""The rules by which transformers' serving and engines with a transformers backend take the decoder (docs/reach.md)."""

import inspect

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig
from transformers.masking_utils import sdpa_mask

from arlow_vl.models.arlow.attention import arlow_attention_forward
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM, ArlowModel
from tests.models.arlow.test_modeling_arlow import text
from tests.tiny_runs import tiny_tokenizer


@pytest.fixture
def spy():
    """An attention of another's making, which keeps what it is called with."""
    calls = []

    def attend(module, query, key, value, attention_mask, **kwargs):
        calls.append((module, kwargs))
        known = inspect.signature(arlow_attention_forward).parameters
        passed = {name: kwargs[name] for name in kwargs if name in known}
        return arlow_attention_forward(module, query, key, value, attention_mask, **passed)

    AttentionInterface.register("spy", attend)
    AttentionMaskInterface.register("spy", sdpa_mask)
    yield calls
    del AttentionInterface._global_mapping["spy"], AttentionMaskInterface._global_mapping["spy"]


def test_every_model_says_that_it_takes_another_attention():
    assert ArlowModel.is_backend_compatible()
    assert ArlowForCausalLM.is_backend_compatible()


def test_keywords_reach_an_attention_of_the_engines_own_in_every_layer(small_config, spy):
    model = AutoModelForCausalLM.from_config(small_config, attn_implementation="spy").eval()
    instances = {index: object() for index in range(4)}
    model(text(1, 6), attention_instances=instances, use_cache=False)
    assert [module.layer_idx for module, _ in spy] == [0, 1, 2, 3]
    assert all(kwargs["attention_instances"] is instances for _, kwargs in spy)
    assert all(kwargs["scaling"] == module.scaling for module, kwargs in spy)


def test_an_engine_builds_the_bare_decoder_with_its_own_attention(small_config, spy):
    with torch.device("meta"):
        on_meta = AutoModel.from_config(small_config, attn_implementation="spy")
    assert type(on_meta) is ArlowModel
    model = AutoModel.from_config(small_config, attn_implementation="spy").eval()
    positions = torch.arange(6)[None]
    hidden_states = model(
        input_ids=None, inputs_embeds=torch.randn(1, 6, 64), position_ids=positions, use_cache=False, return_dict=False
    )[0]
    assert hidden_states.shape == (1, 6, 64)
    assert len(spy) == small_config.num_hidden_layers


def test_an_attention_tells_what_a_kernel_must_know(open_model):
    for index, layer in enumerate(open_model.model.layers):
        attention = layer.self_attn
        assert (attention.layer_idx, attention.is_causal) == (index, True)
        assert attention.scaling == attention.head_dim**-0.5
        assert attention.num_key_value_groups == 2
        assert attention.config is open_model.config
        if layer.cross_block is not None:
            assert not layer.cross_block.attn.is_causal


def test_projections_can_be_replaced_by_the_engines_own(open_model):
    """vLLM puts sharded layers in place of every nn.Linear: they must be called, and nobody may read their weights."""

    class Called(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.call = [linear]

        def forward(self, states):
            return torch.nn.functional.linear(states, self.call[0].weight, self.call[0].bias)

    input_ids = text(1, 6)
    expected = open_model.model(input_ids).last_hidden_state
    for name, module in list(open_model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            open_model.model.set_submodule(name, Called(module))
    # Another kernel may sum in another order.
    torch.testing.assert_close(open_model.model(input_ids).last_hidden_state, expected)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "paged|eager"])
def test_continuous_batching_generates_what_generate_does(small_config, attn_implementation):
    model = ArlowForCausalLM(small_config).eval()
    prompts = [text(length).tolist() for length in (3, 9, 17)]
    settings = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=3)
    expected = [
        model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    model.set_attn_implementation(attn_implementation)
    # On a CPU transformers would size its pages from the memory that is free, and stall.
    pages = ContinuousBatchingConfig(page_size=16, num_blocks=16, max_batch_tokens=32)
    outputs = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=pages)
    found = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
    assert [found[tuple(prompt)] for prompt in prompts] == expected


def test_continuous_batching_refuses_the_gate_and_names_what_it_takes(small_config):
    model = ArlowForCausalLM._from_config(small_config, attn_implementation="arlow").eval()
    pages = ContinuousBatchingConfig(page_size=16, num_blocks=16, max_batch_tokens=32)
    with pytest.raises(ValueError, match=r"arlow is not supported .* Use 'paged\|eager', 'sdpa'"):
        model.generate_batch([[20, 21]], continuous_batching_config=pages)


def test_generation_stops_at_a_string(small_config):
    tokenizer, model = tiny_tokenizer(), ArlowForCausalLM(small_config).eval()
    prompt = tokenizer("the cat sat", return_tensors="pt")
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    free = model.generate(**prompt, **settings)[0, prompt["input_ids"].shape[1] :]
    stop = tokenizer.decode(free[:3])
    stopped = model.generate(**prompt, **settings, stop_strings=[stop], tokenizer=tokenizer)
    assert stopped.shape[1] < prompt["input_ids"].shape[1] + len(free)
