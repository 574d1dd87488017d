"""What a caller can get wrong ends in one sentence that says what to do."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, DynamicCache, StaticCache

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.attention import arlow_attention_forward
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.encoder_checks import Images
from arlow_vl.models.arlow.input_checks import Text, refuse_wrong_call
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.folders import load_text_model
from tests.tiny_runs import write_text_checkpoint

IMAGE = 7
IDS = torch.tensor([[20, 21, 22, 23], [24, 25, 26, 27]])
IMAGES = torch.zeros(2, 3, 64)
SEEING = torch.cat([torch.full((2, 1), IMAGE), IDS], dim=1)
WRONG = {
    "ids are float": ({"input_ids": IDS.float()}, "input_ids must be int64 token ids, got torch.float32"),
    "ids are bool": ({"input_ids": IDS.bool()}, "input_ids must be int64 token ids, got torch.bool"),
    "no batch axis": ({"input_ids": IDS[0]}, "input_ids must be (batch, text), got (4,); add the batch axis"),
    "three axes": ({"input_ids": IDS[None]}, "input_ids must be (batch, text), got (1, 2, 4)"),
    "both": ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 4, 64)}, "exactly one of input_ids and inputs_embeds"),
    "neither": ({}, "exactly one of input_ids and inputs_embeds"),
    "id beyond": ({"input_ids": IDS + 280}, "input_ids holds 307, but the vocabulary has ids 0 to 299"),
    "id below": ({"input_ids": IDS - 21}, "input_ids holds -1, but the vocabulary has ids 0 to 299"),
    "embeddings of another width": (
        {"inputs_embeds": torch.zeros(2, 4, 65)},
        "inputs_embeds must be (batch, text, hidden_size 64), got (2, 4, 65)",
    ),
    "embeddings of integers": (
        {"inputs_embeds": torch.zeros(2, 4, 64, dtype=torch.long)},
        "inputs_embeds must be floating point, got torch.int64; ids go in as input_ids",
    ),
    "mask of another length": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 5)},
        "attention_mask must be (2, 4 of text), got (2, 5)",
    ),
    "mask of another batch": (
        {"input_ids": IDS, "attention_mask": torch.ones(1, 4)},
        "attention_mask must be (2, 4 of text), got (1, 4)",
    ),
    "mask of three axes": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 4, 4)},
        "attention_mask must be (2, 4 of text), got (2, 4, 4)",
    ),
    "positions of another length": (
        {"input_ids": IDS, "position_ids": torch.arange(5)[None]},
        "position_ids must be (2, 4) as the text is, got (1, 5)",
    ),
    "positions without batch": ({"input_ids": IDS, "position_ids": torch.arange(4)}, "position_ids must be (2, 4)"),
    "labels of another length": (
        {"input_ids": IDS, "labels": IDS[:, 1:]},
        "labels must be (2, 4) as the text is, got (2, 3); they are shifted inside",
    ),
    "labels beyond": ({"input_ids": IDS, "labels": IDS + 280}, "labels hold 300, but the vocabulary has ids 0 to 299"),
    "labels of another sign": ({"input_ids": IDS, "labels": IDS - 24}, "labels hold -4, but the vocabulary"),
    "float labels": ({"input_ids": IDS, "labels": IDS.float()}, "labels must be int64 token ids, got torch.float32"),
    "encoder states of another width": (
        {"input_ids": SEEING, "encoder_hidden_states": IMAGES[..., :63]},
        "encoder_hidden_states must be floating point (images, encoder tokens, hidden_size 64), or",
    ),
    "encoder mask of another shape": (
        {"input_ids": SEEING, "encoder_hidden_states": IMAGES, "encoder_attention_mask": torch.ones(2, 4)},
        "encoder_attention_mask must be (2, 3) as encoder_hidden_states are, got (2, 4)",
    ),
    "encoder mask alone": (
        {"input_ids": IDS, "encoder_attention_mask": torch.ones(2, 3)},
        "encoder_attention_mask came without encoder_hidden_states",
    ),
    "too few images": (
        {"input_ids": SEEING, "encoder_hidden_states": IMAGES[:1]},
        "got 1 image for 2 <image> tokens (per row: [1, 1])",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_refused_with_what_was_expected(open_model, case):
    inputs, sentence = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        open_model(**inputs)


@pytest.mark.parametrize(
    ("keyword", "sentence"),
    [
        ("atention_mask", "'atention_mask'; did you mean attention_mask?"),
        ("lables", "'lables'; did you mean labels?"),
        ("output_hidden_state", "did you mean output_hidden_states?"),
        ("encoder_hidden_state", "did you mean encoder_hidden_states?"),
        ("logit_to_keep", "did you mean logits_to_keep?"),
    ],
)
def test_a_misspelt_keyword_is_refused_with_the_closest(open_model, keyword, sentence):
    with pytest.raises(TypeError, match=re.escape(sentence)):
        open_model(IDS, **{keyword: None})


@pytest.mark.parametrize("keyword", ["temperature", "cache_position", "token_type_ids", "a_keyword_of_next_year"])
def test_a_keyword_that_is_no_misspelling_is_passed_on(open_model, keyword):
    assert torch.equal(open_model(IDS, **{keyword: None}).logits, open_model(IDS).logits)


def test_keywords_reach_an_attention_function_of_the_callers_own(open_model):
    seen = []

    def attention(*args, my_keyword=None, **kwargs):
        seen.append(my_keyword)
        return arlow_attention_forward(*args, **kwargs)

    AttentionInterface.register("my_attention", attention)
    open_model.set_attn_implementation("my_attention")
    open_model(IDS, my_keyword="here")
    assert seen == ["here"] * 4


def cache_of(rows: int = 2, **changes) -> DynamicCache:
    sizes = {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16} | changes
    config = ArlowConfig(hidden_size=64, num_attention_heads=4, cross_attention_interval=2, **sizes)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        keys = torch.zeros(rows, config.num_key_value_heads, 3, config.head_dim)
        cache.update(keys, keys, layer)
    return cache


@pytest.mark.parametrize(
    ("cache", "sentence"),
    [
        (cache_of(num_hidden_layers=6), "the cache has 6 layers and this model 4; it was made for another model"),
        (cache_of(rows=3), "(rows, key-value heads, head_dim) (3, 2, 16) and this call has (2, 2, 16)"),
        (cache_of(num_key_value_heads=4), "(rows, key-value heads, head_dim) (2, 4, 16) and this call has (2, 2, 16)"),
        (cache_of(head_dim=8), "(rows, key-value heads, head_dim) (2, 2, 8) and this call has (2, 2, 16)"),
    ],
)
def test_a_cache_of_another_model_or_batch_is_refused(open_model, cache, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        open_model(IDS[:, :1], cache=cache)


def test_a_mask_beside_a_cache_must_cover_what_the_cache_holds(open_model):
    sentence = "attention_mask must be (2, 3 in the cache + 1 of text), got (2, 1)"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        open_model(IDS[:, :1], cache=cache_of(), attention_mask=torch.ones(2, 1))


def test_good_inputs_of_every_kind_pass(open_model, small_config):
    for cache in (None, cache_of(), DynamicCache(), StaticCache(config=small_config, max_cache_len=8)):
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = torch.ones(2, past + 4)
        labels = IDS.masked_fill(IDS == 20, -100)
        for text in ({"input_ids": IDS}, {"input_ids": IDS.int()}, {"inputs_embeds": torch.zeros(2, 4, 64)}):
            assert open_model(**text, attention_mask=mask[:, : past + 4], labels=labels, cache=cache).loss.isfinite()
            if cache is not None:
                break
    four_dimensional = torch.ones(1, 1, 4, 4).tril().bool()
    assert open_model(IDS, attention_mask=four_dimensional).logits.isfinite().all()


COMPILED = """
import torch
from arlow_vl import ArlowConfig, ArlowForCausalLM
sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, cross_attention_interval=2)
model = ArlowForCausalLM(ArlowConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)).eval()
model.set_attn_implementation("sdpa")
input_ids = torch.tensor([[20, 21, 22]])
given = dict(attention_mask=torch.ones(1, 3), labels=input_ids, use_cache=False)
compiled = torch.compile(model, fullgraph=True, backend="eager")(input_ids, **given)
torch.testing.assert_close(compiled.logits, model(input_ids, **given).logits)
"""


@pytest.mark.slow
def test_the_checks_leave_a_compiled_graph_whole():
    """In a process of its own: dynamo cannot trace the annotation checks of the tests."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, capture_output=True, cwd=Path(__file__).parents[3])


@pytest.mark.gpu
def test_an_id_outside_the_vocabulary_is_asserted_on_the_gpu_without_waiting(open_model):
    text = Text(IDS.cuda(), None, None, None)  # copied before: that waits
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            refuse_wrong_call(open_model, text, Images(None, None, None, None), None)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def good_checkpoint(tmp_path_factory):
    return write_text_checkpoint(tmp_path_factory.mktemp("good"))


@pytest.fixture
def checkpoint(good_checkpoint, tmp_path):
    return shutil.copytree(good_checkpoint, tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda raw: raw[: len(raw) // 2], "incomplete metadata, file not fully covered"),
        (lambda raw: b"", "header too small"),
        (lambda raw: b"<html>not found</html>", "header too large"),
    ],
    ids=["half a file", "an empty file", "a web page"],
)
def test_weights_that_cannot_be_read_are_refused_with_file_and_reason(checkpoint, content, reason):
    path = checkpoint / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(CheckpointError, match=re.escape(f"{path} (") + f".*{reason}; copy or download the file again"):
        ArlowForCausalLM.from_pretrained(checkpoint)


def test_a_missing_shard_is_named(checkpoint):
    sharded = checkpoint / "sharded"
    ArlowForCausalLM.from_pretrained(checkpoint).save_pretrained(sharded, max_shard_size="20KB")
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing, but model.safetensors.index.json lists it"):
        ArlowForCausalLM.from_pretrained(sharded)


def test_a_folder_without_weights_or_without_a_configuration_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors; copy"):
        ArlowForCausalLM.from_pretrained(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json; name the folder"):
        ArlowForCausalLM.from_pretrained(checkpoint)


def test_a_pickle_that_is_none_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"junk" * 100)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin \(400 bytes\) is cut short or no PyTorch file"):
        ArlowForCausalLM.from_pretrained(checkpoint)


def test_missing_and_extra_tensors_are_reported_by_name_and_refused_by_the_commands(checkpoint):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["model.extra"] = tensors.pop("model.norm.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    _, report = ArlowForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert (report["missing_keys"], report["unexpected_keys"]) == ({"model.norm.weight"}, {"model.extra"})
    sentence = (
        "1 tensors missing, first model.norm.weight; 1 tensors unexpected, first model.extra; put back the config.json"
    )
    with pytest.raises(CheckpointError, match=re.escape(sentence)):
        load_text_model(checkpoint)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_no_numbers_are_named(open_model, bad):
    images = torch.randn(2, 5, 64)
    images[1, 3, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity in image 1"):
        open_model(torch.tensor([[1, 7, 7, 9]]), encoder_hidden_states=images)
    with pytest.raises(ValueError, match="NaN or infinity in encoder token 8"):
        open_model(
            torch.tensor([[1, 7, 7, 9]]),
            encoder_hidden_states=images.flatten(0, 1),
            encoder_lengths=torch.tensor([5, 5]),
        )
