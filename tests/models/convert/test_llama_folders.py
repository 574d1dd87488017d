"""A Llama folder becomes an Arlow text model and comes back: every tensor, every id, every setting."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.chat_arlow import CHAT_TEMPLATE, drop_quotes
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.convert import llama_folders
from arlow_vl.models.convert.added_tokens import without_additions
from arlow_vl.models.convert.exporting import export_llama
from arlow_vl.models.convert.gguf_tokens import vocabulary_of
from arlow_vl.models.convert.importing import import_model
from arlow_vl.models.convert.llama_folders import read_tokenizer
from arlow_vl.models.folder_writing import find_changes
from arlow_vl.models.folders import load_text_model, load_tokenizer
from tests.data.test_prompts import marks_tokenizer
from tests.models.convert.made_llamas import TOKENIZERS, smol_tokenizer, write_llama
from tests.tiny_runs import sentences
from vision.encoder import VisionEncoder
from vision.transform import ImageTransform

UP = {"tokens": [], "roles": {"padding_side": "up"}, "vocab_size": 320}
EMBEDDING = "model.embed_tokens.weight"
CASES = {
    "smol": ("smol", {}),
    "llama3": ("llama3", {"tie_word_embeddings": False, "attention_bias": True, "dtype": torch.bfloat16}),
    "sentencepiece": ("sentencepiece", {"head_dim": 32, "mlp_bias": True}),
}


@pytest.fixture(scope="module", params=CASES)
def folders(request, tmp_path_factory):
    """A Llama, the Arlow text model that was made of it, and the Llama that was made of that."""
    tokenizer, changes = CASES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    write_llama(root / "source", TOKENIZERS[tokenizer](), **changes)
    import_model(root / "source", root / "arlow", cross_attention_interval=3)
    export_llama(root / "arlow", root / "back")
    return root


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_every_tensor_comes_back_bit_for_bit(folders):
    source, back = tensors(folders / "source"), tensors(folders / "back")
    assert source.keys() == back.keys()
    assert all(back[name].dtype == tensor.dtype and torch.equal(back[name], tensor) for name, tensor in source.items())


def test_the_text_model_has_the_sources_tensors_and_rows_behind_them(folders):
    source, arlow = tensors(folders / "source"), tensors(folders / "arlow")
    assert source.keys() == arlow.keys()
    for name, tensor in source.items():
        assert torch.equal(arlow[name][: len(tensor)], tensor)
        assert (
            len(arlow[name]) > len(tensor) if name in (EMBEDDING, "lm_head.weight") else len(arlow[name]) == len(tensor)
        )
    new = arlow[EMBEDDING][len(source[EMBEDDING]) :]
    assert torch.equal(new, source[EMBEDDING].float().mean(0).to(new.dtype).expand_as(new))


def test_logits_are_those_of_transformers_own_llama(folders):
    llama, back = (
        AutoModelForCausalLM.from_pretrained(folders / name, dtype=torch.float32) for name in ("source", "back")
    )
    arlow, _ = load_text_model(folders / "arlow")
    ids = torch.randint(llama.config.vocab_size, (2, 40))
    with torch.inference_mode():
        expected, found = llama(ids).logits, arlow.float()(ids).logits[..., : llama.config.vocab_size]
        assert torch.equal(back(ids).logits, expected)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()  # other orders of float32 sums


def test_configuration_settings_and_tokenizer_come_back(folders):
    for name in ("config.json", "generation_config.json"):
        was, now = (read_json(folders / part / name) for part in ("source", "back"))
        assert now == was
    was, now = (json.loads(load(folders / part).backend_tokenizer.to_str()) for part in ("source", "back"))
    assert now == was
    was, now = (load(folders / part) for part in ("source", "back"))
    for name in (
        "bos_token",
        "eos_token",
        "unk_token",
        "pad_token",
        "chat_template",
        "model_max_length",
        "padding_side",
    ):
        assert getattr(now, name) == getattr(was, name), name


def load(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


def test_settings_of_generation_are_kept(folders):
    model, _ = load_text_model(folders / "arlow")
    was = read_json(folders / "source" / "generation_config.json")
    assert model.generation_config.eos_token_id == was["eos_token_id"] and len(was["eos_token_id"]) == 2
    assert model.generation_config.repetition_penalty == 1.1


def test_no_id_changes_and_arlows_tokens_stand_behind(folders):
    source, arlow = load(folders / "source"), load_tokenizer(folders / "arlow")
    added = arlow.get_vocab().items() - source.get_vocab().items()
    assert source.get_vocab().items() <= arlow.get_vocab().items()
    assert {index for _, index in added} == set(range(len(source), len(arlow)))
    assert dict(added)["<image>"] == len(source)
    assert arlow.pad_token not in (None, arlow.eos_token)
    model, _ = load_text_model(folders / "arlow")
    roles = ("bos_token_id", "pad_token_id")
    assert [getattr(model.config, role) for role in roles] == [getattr(arlow, role) for role in roles]
    assert model.config.image_token_id == len(source) and model.config.cross_attention_interval == 3


@pytest.fixture(scope="module")
def tokenizers(folders):
    return load(folders / "source"), load_tokenizer(folders / "arlow"), load(folders / "back")


ODD = [" in 1998, 12345  cats", "<s>a</s> <|eot_id|>", "  \n\n x", "ẞ中文🎉", "<|im_", "image>"]


@settings(max_examples=60)
@given(text=st.text(max_size=40) | st.lists(st.sampled_from(ODD)).map("".join))
def test_every_text_has_the_ids_that_it_had(tokenizers, text):
    ids = [tokenizer(text)["input_ids"] for tokenizer in tokenizers]
    assert ids[1:] == ids[:1] * 2


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_the_ids_are_those_of_tokenizer_json_whatever_class_the_folder_names(tmp_path, make, name):
    was = make()
    was.model_max_length, was.padding_side = 77, "right"
    was.save_pretrained(tmp_path)
    config = read_json(tmp_path / "tokenizer_config.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": name, "legacy": False}))
    for tokenizer in (read_tokenizer(tmp_path), load_tokenizer(tmp_path)):
        assert json.loads(tokenizer.backend_tokenizer.to_str()) == read_json(tmp_path / "tokenizer.json")
        for part in ("special_tokens_map", "chat_template", "model_max_length", "padding_side"):
            assert getattr(tokenizer, part) == getattr(was, part), part


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("words", [None, pre_tokenizers.ByteLevel(add_prefix_space=False)])
def test_what_drops_quotes_is_gone_at_the_export(tmp_path, normalized, words):
    tokenizer = marks_tokenizer(normalized=normalized)
    tokenizer.backend_tokenizer.pre_tokenizer = words
    was = tokenizer.backend_tokenizer.to_str()
    drop_quotes(tokenizer.backend_tokenizer)
    drop_quotes(tokenizer.backend_tokenizer)
    assert tokenizer.backend_tokenizer.to_str() != was
    assert json.loads(without_additions(tokenizer, tmp_path)[0].backend_tokenizer.to_str()) == json.loads(was)


def test_the_chat_template_is_the_sources_own_or_arlows(folders):
    source, arlow = load(folders / "source"), load_tokenizer(folders / "arlow")
    assert arlow.chat_template == (source.chat_template or CHAT_TEMPLATE)


def test_checksums_are_written(folders):
    assert find_changes(folders / "arlow") == find_changes(folders / "back") == []


def test_rows_without_a_token_are_used_first(tmp_path):
    source = write_llama(tmp_path / "source", vocab_size=336)  # padded, as vocabularies are
    lines = import_model(source, tmp_path / "arlow")
    assert "no embedding row is new: rows without a token were left for them" in lines
    arlow = tensors(tmp_path / "arlow")
    assert torch.equal(arlow[EMBEDDING], tensors(source)[EMBEDDING])
    export_llama(tmp_path / "arlow", tmp_path / "back")
    assert read_json(tmp_path / "back" / "config.json") == read_json(source / "config.json")


def test_an_image_token_of_the_source_is_used(tmp_path):
    tokenizer = smol_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    source = write_llama(tmp_path / "source", tokenizer)
    lines = import_model(source, tmp_path / "arlow")
    assert f"<image> is the tokenizer's own special token {len(tokenizer) - 1}" in lines
    export_llama(tmp_path / "arlow", tmp_path / "back")
    assert load(tmp_path / "back").get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_without_bos_begins_documents_with_eos(tmp_path):
    tokenizer = smol_tokenizer()
    tokenizer.bos_token = None
    source = write_llama(tmp_path / "source", tokenizer)
    assert "documents begin with <|im_end|>, as the tokenizer has no bos_token" in import_model(
        source, tmp_path / "arlow"
    )
    assert load_tokenizer(tmp_path / "arlow").bos_token == "<|im_end|>"
    export_llama(tmp_path / "arlow", tmp_path / "back")
    assert load(tmp_path / "back").bos_token is None


def refusal(folder: Path, out: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        import_model(folder, out)
    assert not out.exists() and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2' is another architecture; import reads llama and mistral"),
        ({"model_type": None}, "model_type None is another architecture"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window 64 hides text that Arlow's attention sees"),
        ({"hidden_act": "swish2"}, "Arlow's decoder cannot be built from it: hidden_act 'swish2' is unknown"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor 0.5 does not go with rope_type 'default'",
        ),
        ({"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "rope_type 'mrope' is unknown"),
        ({"hidden_size": "64"}, "is no llama configuration"),
        ({"num_attention_heads": 0}, "is no llama configuration"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config says that the weights are quantised"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers are said and there are only 29 tensors"),
        (
            {"intermediate_size": 100},
            "9 tensors of another shape: model.layers.0.mlp.gate_proj.weight ([96, 64], not [100, 64])",
        ),
        ({"attention_bias": True}, "12 tensors missing: model.layers.0.self_attn.q_proj.bias"),
        ({"tie_word_embeddings": False}, "1 tensors missing: lm_head.weight"),
        ({"vocab_size": 330}, "1 tensors of another shape: model.embed_tokens.weight ([320, 64], not [330, 64])"),
    ],
)
def test_what_arlow_cannot_be_is_refused_by_field_and_value(tmp_path, changes, sentence):
    source = write_llama(tmp_path / "source")
    config = read_json(source / "config.json")
    (source / "config.json").write_text(json.dumps(config | changes))
    told = refusal(source, tmp_path / "out")
    assert told.startswith(str(source / "config.json"))
    assert sentence in told


@pytest.mark.parametrize("template", [3, True, {"default": 3}])
def test_a_chat_template_that_is_no_text_is_refused_before_anything_is_written(tmp_path, template):
    source = write_llama(tmp_path / "source")
    (source / "chat_template.jinja").unlink()
    config = read_json(source / "tokenizer_config.json")
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    sentence = f"{source / 'tokenizer_config.json'}: chat_template must be a string, or strings by their names, got "
    assert refusal(source, tmp_path / "out").startswith(f"{sentence}{template!r}")
    with pytest.raises(CheckpointError, match="chat_template must be a string"):
        load_tokenizer(source)


def test_settings_that_nothing_reads_are_left_out_and_told(tmp_path):
    source = write_llama(tmp_path / "source")
    settings = read_json(source / "generation_config.json")
    unread = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "length_penalty": 2.0}
    (source / "generation_config.json").write_text(json.dumps(settings | unread))
    lines = import_model(source, tmp_path / "arlow")
    assert (
        "generation_config.json: temperature 0.6, top_p 0.9, length_penalty 2.0 left out, as what reads that "
        "(sampling, or beams) is off"
    ) in lines
    kept = read_json(tmp_path / "arlow" / "generation_config.json")
    assert not {"temperature", "top_p", "length_penalty"} & kept.keys() and kept.items() >= settings.items()
    (tmp_path / "arlow" / "generation_config.json").write_text(json.dumps(kept | unread))  # edited there
    export_llama(tmp_path / "arlow", tmp_path / "back")
    assert (
        not {"temperature", "top_p", "length_penalty"} & read_json(tmp_path / "back" / "generation_config.json").keys()
    )


def test_settings_of_sampling_are_kept_where_it_is_asked_for(tmp_path):
    source = write_llama(tmp_path / "source")
    settings = read_json(source / "generation_config.json") | {"temperature": 0.6, "top_k": 50, "do_sample": True}
    (source / "generation_config.json").write_text(json.dumps(settings))
    assert not [line for line in import_model(source, tmp_path / "arlow") if "left out" in line]
    assert read_json(tmp_path / "arlow" / "generation_config.json").items() >= settings.items()


def test_mistral_without_a_window_is_imported(tmp_path):
    source = write_llama(tmp_path / "source")
    config = read_json(source / "config.json") | {"model_type": "mistral", "sliding_window": None}
    (source / "config.json").write_text(json.dumps(config))
    import_model(source, tmp_path / "out")
    assert load_text_model(tmp_path / "out")[0].config.model_type == "arlow"


def test_a_key_of_rotary_scaling_that_nobody_reads_counts_for_nothing(tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    configs = []
    for name, more in (("a", {}), ("b", {"finetuned": True})):
        source = write_llama(tmp_path / name)
        config = read_json(source / "config.json")
        del config["rope_parameters"]
        (source / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling | more}))
        import_model(source, tmp_path / f"{name}-out")
        configs.append(read_json(tmp_path / f"{name}-out" / "config.json"))
    assert configs[0] == configs[1]
    assert configs[0]["rope_parameters"]["rope_type"] == "yarn"


def write_pieces(folder: Path, **rules) -> Path:
    """A Llama whose tokenizer is sentencepiece's own file alone, with Llama's rules but for some."""
    sentencepiece = pytest.importorskip("sentencepiece")
    llamas = {
        "vocab_size": 400,
        "hard_vocab_limit": False,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(80)),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        **llamas | rules,
    )
    (folder / "tokenizer.vocab").unlink()
    told = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"add_bos_token": True}))
    return folder


RULES = [{}, {"add_dummy_prefix": False}, {"user_defined_symbols": ["USR:", "\u2581\u2581"]}]


@pytest.fixture(scope="module", params=RULES, ids=["as Llama's", "no space in front", "whole symbols"])
def piece_folder(request, tmp_path_factory):
    return write_pieces(tmp_path_factory.mktemp("pieces"), **request.param)


@pytest.mark.parametrize(
    "text", ["the fox", " lead", "  two  spaces ", "\t1 2", "ünï 漢字 🙂\nnew", "", "USR: a USR:b"]
)
def test_tokenizer_model_alone_gives_the_ids_of_sentencepiece(piece_folder, text):
    import sentencepiece

    tokenizer = read_tokenizer(piece_folder)
    ids = tokenizer(text)["input_ids"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(piece_folder / "tokenizer.model"))
    assert ids == [1, *pieces.encode(text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"model_type": "unigram"}, "model_type 'unigram' is a rule that is not read here"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization_rule_name 'nmt_nfkc' is a rule"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces True is a rule"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix True is a rule"),
    ],
)
def test_tokenizer_model_with_rules_that_give_other_ids_is_refused(tmp_path, rules, sentence):
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(write_pieces(tmp_path, **rules))
    assert str(caught.value).startswith(f"{tmp_path / 'tokenizer.model'}: {sentence}"), caught.value


@pytest.mark.parametrize("in_front", [True, False])
def test_tokenizer_model_is_read_in_a_form_that_gguf_has(tmp_path, in_front):
    tokenizer = read_tokenizer(write_pieces(tmp_path, add_dummy_prefix=in_front))
    vocabulary = vocabulary_of(tokenizer, len(tokenizer), tmp_path)
    assert (vocabulary.model, vocabulary.flags["add_space_prefix"]) == ("llama", in_front)


def test_tokenizer_model_that_is_read_with_other_ids_is_refused_with_a_text(tmp_path):
    write_pieces(tmp_path)
    config = read_json(tmp_path / "tokenizer_config.json")
    added = {"399": {"content": "e c", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": added}))
    with pytest.raises(CheckpointError, match=r"tokenizer.model: sentencepiece makes of the text '.*' the ids \["):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_tokenizer_model_without_what_reads_it_is_refused_with_what_to_install(tmp_path, monkeypatch, package):
    (tmp_path / "tokenizer.model").touch()
    monkeypatch.setattr(llama_folders, f"is_{package}_available", lambda: False)
    with pytest.raises(CheckpointError, match="pip install sentencepiece protobuf"):
        read_tokenizer(tmp_path)


def change_tensors(folder: Path, **new: torch.Tensor) -> None:
    save_file(tensors(folder) | new, folder / "model.safetensors", metadata={"format": "pt"})


def test_tensors_that_llama_does_not_have_are_refused_and_old_tables_are_not(tmp_path):
    source = write_llama(tmp_path / "source")
    change_tensors(source, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    import_model(source, tmp_path / "fine")
    change_tensors(source, **{"model.layers.0.self_attn.q_norm.weight": torch.ones(16)})
    sentence = "1 tensors that Llama does not have: model.layers.0.self_attn.q_norm.weight"
    assert sentence in refusal(source, tmp_path / "out")


def test_a_head_that_should_be_the_embedding_and_is_not_is_refused(tmp_path):
    source = write_llama(tmp_path / "source")
    change_tensors(source, **{"lm_head.weight": tensors(source)[EMBEDDING].clone()})
    import_model(source, tmp_path / "fine")
    change_tensors(source, **{"lm_head.weight": tensors(source)[EMBEDDING] + 1})
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(source, tmp_path / "out")


def test_values_that_are_not_finite_are_refused(tmp_path):
    source = write_llama(tmp_path / "source")
    change_tensors(source, **{"model.norm.weight": torch.full((64,), float("nan"))})
    assert "not finite (NaN or infinite) in model.norm.weight" in refusal(source, tmp_path / "out")


@pytest.mark.parametrize("count", [100, 321])
def test_a_tokenizer_of_another_model_is_refused(tmp_path, count):
    source = write_llama(tmp_path / "source")
    tokenizer = smol_tokenizer() if count > 320 else smol_tokenizer(270)
    if count > 320:
        tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(source)
    told = refusal(source, tmp_path / "out")
    many = "the tokenizer has 321 tokens up to id 320 (more) and the model only 320 embedding rows"
    few = "the tokenizer has 270 tokens for 320 embedding rows, too few to be the one that the model was trained with"
    assert (many if count > 320 else few) in told


@pytest.mark.parametrize("as_added", [True, False])
def test_an_image_token_that_is_a_word_is_refused(tmp_path, as_added):
    tokenizer = smol_tokenizer()
    if as_added:
        tokenizer.add_tokens(["<image>"])
    else:
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        spec["model"]["vocab"]["<image>"] = 320
        tokenizer.backend_tokenizer.__setstate__(json.dumps(spec).encode())
    source = write_llama(tmp_path / "source", tokenizer)
    assert "the vocabulary uses <image> for something else (token 320 is no" in refusal(source, tmp_path / "out")


def test_ids_that_are_left_out_are_refused_where_a_new_token_would_get_one_that_is_taken(tmp_path):
    tokenizer = smol_tokenizer()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = spec["model"]["vocab"]
    spec["model"]["vocab"] = {token: index + 2 * (index >= 318) for token, index in vocab.items()}
    tokenizer.backend_tokenizer.__setstate__(json.dumps(spec).encode())
    told = refusal(write_llama(tmp_path / "source", tokenizer, vocab_size=322), tmp_path / "out")
    assert "has 320 tokens with ids up to 321, so <image> would share id 320 with" in told


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_padding_comes_back_though_images_want_the_left(tmp_path, side):
    tokenizer = smol_tokenizer()
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = side
    import_model(write_llama(tmp_path / "source", tokenizer), tmp_path / "arlow")
    encoder = VisionEncoder("test_vit", image_size=32)
    data_config = {key: encoder.image_transform().to_dict()[key] for key in ImageTransform.DATA_CONFIG}
    processor = ArlowProcessor(ArlowImageProcessor(data_config), load_tokenizer(tmp_path / "arlow"))
    processor.save_pretrained(tmp_path / "hf")
    seen = load_tokenizer(tmp_path / "hf")
    assert seen.padding_side == "left"
    assert without_additions(seen, tmp_path)[0].padding_side == side


def with_tokens_after_the_import(folder: Path, rows: int) -> Path:
    """A model of a source of so many rows, with two tokens more than the import added, whose rows are trained."""
    import_model(write_llama(folder / "source", vocab_size=rows), folder / "arlow")
    model, tokenizer = load_text_model(folder / "arlow")
    tokenizer.add_tokens(["<loc0>", "<loc1>"], special_tokens=True)
    if model.config.vocab_size < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.nn.init.normal_(model.get_input_embeddings().weight.data[320:])
    loc0, loc1 = tokenizer.convert_tokens_to_ids(["<loc0>", "<loc1>"])
    model.generation_config.update(eos_token_id=[2, 0, loc1], bad_words_ids=[[5, loc0], [tokenizer.pad_token_id]])
    model.generation_config.sequence_bias = [[[loc0, loc1], 2.0]]
    model.save_pretrained(folder / "extended")
    tokenizer.save_pretrained(folder / "extended")
    return folder / "extended"


@pytest.mark.parametrize("rows", [320, 344])
def test_tokens_that_were_added_after_the_import_leave_with_their_rows(tmp_path, rows):
    lines = export_llama(with_tokens_after_the_import(tmp_path, rows), tmp_path / "back")
    told = "the tokens that the import added stay behind, so that ids change: <loc0> to 320, <loc1> to 321"
    assert told in lines
    arlow, words = load_text_model(tmp_path / "extended")
    llama, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "back"), load(tmp_path / "back")
    assert llama.config.vocab_size == max(rows, 322) and len(tokenizer) == 322
    assert "<image>" not in tokenizer.get_vocab()
    text = "the cat <loc0> sat on <loc1> mats"
    ids, moved = (torch.tensor([of(text)["input_ids"]]) for of in (words, tokenizer))
    with torch.inference_mode():
        expected, found = arlow(ids).logits, llama(moved).logits
    for token, index in tokenizer.get_vocab().items():
        was = expected[..., words.convert_tokens_to_ids(token)]
        torch.testing.assert_close(found[..., index], was, rtol=1e-4, atol=1e-4)  # other orders of float32 sums
    assert llama.generation_config.eos_token_id == [2, 0, 321]
    assert llama.generation_config.bad_words_ids == [[5, 320]]
    assert llama.generation_config.sequence_bias == [[[320, 321], 2.0]]


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_not_exported(tmp_path):
    folder = with_tokens_after_the_import(tmp_path, 320)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"325 tokens up to id 324 \(more\) and the model only 324 embedding"):
        export_llama(folder, tmp_path / "back")


def test_a_missing_file_is_named(tmp_path):
    assert "does not exist; name a folder with Llama's config.json, or a GGUF" in refusal(
        tmp_path / "a", tmp_path / "out"
    )
    source = write_llama(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    assert f"{source} holds no tokenizer.json" in refusal(source, tmp_path / "out")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "holds no model.safetensors; it holds PyTorch's .bin files" in refusal(source, tmp_path / "out")
    (source / "pytorch_model.bin").rename(source / "m.gguf")
    assert "holds no model.safetensors; name its GGUF file, m.gguf" in refusal(source, tmp_path / "out")
    (source / "m.gguf").unlink()
    assert "holds no model.safetensors; name a folder with" in refusal(source, tmp_path / "out")
    (source / "config.json").unlink()
    assert "holds no config.json" in refusal(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_was_cut_is_refused(tmp_path, name):
    source = write_llama(tmp_path / "source")
    content = (source / name).read_bytes()
    (source / name).write_bytes(content[: len(content) // 2])
    assert str(source) in refusal(source, tmp_path / "out")


def test_an_arlow_model_is_exported_without_its_cross_attention(tmp_path):
    from tests.tiny_runs import write_text_checkpoint

    lines = export_llama(write_text_checkpoint(tmp_path / "arlow"), tmp_path / "back")
    assert "only the text part is exported: the cross-attention blocks stay behind" in lines
    arlow, words = load_text_model(tmp_path / "arlow")
    llama, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "back"), load(tmp_path / "back")
    text = "the cat sat <image> on <|im_end|> mats"
    assert type(tokenizer).__name__ == "TokenizersBackend"
    assert tokenizer(text)["input_ids"] == words(text)["input_ids"]
    ids = torch.tensor([words("the cat sat")["input_ids"]])
    with torch.inference_mode():
        torch.testing.assert_close(llama(ids).logits, arlow(ids).logits)


def test_half_precision_is_written_when_asked_and_rounding_is_told(tmp_path):
    import_model(write_llama(tmp_path / "source"), tmp_path / "arlow")
    lines = export_llama(tmp_path / "arlow", tmp_path / "back", dtype="bfloat16")
    assert any(line.endswith("tensors were rounded to bfloat16") for line in lines)
    assert tensors(tmp_path / "back")[EMBEDDING].dtype == torch.bfloat16


@pytest.mark.parametrize("record", [5, {"tokens": []}, {"tokens": [1], "roles": {}, "vocab_size": 9}, UP])
def test_a_damaged_record_of_the_import_is_refused(tmp_path, record):
    import_model(write_llama(tmp_path / "source"), tmp_path / "arlow")
    path = tmp_path / "arlow" / "tokenizer_config.json"
    path.write_text(json.dumps(read_json(path) | {"imported": record}))
    with pytest.raises(CheckpointError, match="'imported' is damaged"):
        export_llama(tmp_path / "arlow", tmp_path / "back")
