"""GGUF out, as llama.cpp reads it, and in; bit for bit where nothing is quantised."""

import json
import random
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from arlow_vl.errors import CheckpointError, ResourceError
from arlow_vl.models.convert.exporting import export_llama
from arlow_vl.models.convert.gguf_files import open_gguf, to_gguf_order, to_llama_order
from arlow_vl.models.convert.gguf_tokens import SPLITS, tokenizer_of, vocabulary_of
from arlow_vl.models.convert.gguf_writing import export_gguf
from arlow_vl.models.convert.importing import import_model
from arlow_vl.models.convert.llama_config import arlow_config
from arlow_vl.models.convert.tensors import refuse_other_shapes
from arlow_vl.models.folders import load_tokenizer
from tests.models.convert.llama_cpp import complete, server
from tests.models.convert.made_llamas import TOKENIZERS, smol_tokenizer, write_llama
from tests.tiny_runs import write_text_checkpoint

LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES = {
    "smol": ("smol", {}),
    "llama3": (
        "llama3",
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "rope_parameters": LLAMA3_ROPE | {"original_max_position_embeddings": 64},
        },
    ),
    "sentencepiece": (
        "sentencepiece",
        {"head_dim": 32, "rope_parameters": {"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0}},
    ),
}
PROMPTS = ["the cat sat on 1234 mats, saw  one", " in old trees\n\nx 中文ẞ 🎉", "<|im_start|>user\na<|im_end|>\n"]


@pytest.fixture(scope="module", params=CASES)
def folders(request, tmp_path_factory):
    """A Llama, the Arlow text model made of it, and the GGUF file made of that."""
    tokenizer, changes = CASES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    write_llama(root / "source", TOKENIZERS[tokenizer](), **changes)
    import_model(root / "source", root / "arlow")
    export_gguf(root / "arlow", root / "model.gguf")
    return root


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_llama_cpp_reads_the_same_ids_and_writes_the_same_text_as_transformers(folders):
    llama, tokenizer = (auto.from_pretrained(folders / "source") for auto in (LlamaForCausalLM, AutoTokenizer))
    llama_cpp, forbidden = server(folders / "model.gguf"), parts_of_characters(tokenizer)
    forbidden = sorted({*forbidden, *llama.generation_config.eos_token_id})  # which end llama.cpp's text, too
    options = {"max_new_tokens": 16, "do_sample": False, "repetition_penalty": 1.0, "suppress_tokens": forbidden}
    options["eos_token_id"] = tokenizer.eos_token_id
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        written = llama.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        assert len(written) == 16
        for asked in (prompt, ids):
            assert complete(llama_cpp, asked, 16, forbidden) == (written, len(ids)), prompt


def parts_of_characters(tokenizer) -> list[int]:
    """Ids that random weights would write and that llama.cpp's server does not tell: bytes, and what ends a text."""
    words = (index for index in range(len(tokenizer)) if tokenizer.decode([index]).isprintable())
    known = {index for index in words if tokenizer.decode([index]).isascii() and tokenizer.decode([index])}
    return sorted({*range(len(tokenizer))} - known | {*tokenizer.all_special_ids})


def test_every_tensor_comes_back_bit_for_bit_out_of_gguf(folders, tmp_path):
    source = tensors(folders / "source")
    if "rope_freqs.weight" in {tensor.name for tensor in gguf.GGUFReader(folders / "model.gguf").tensors}:
        with pytest.raises(CheckpointError, match=r"rope_freqs.weight holds rotary factors without the rule"):
            import_model(folders / "model.gguf", tmp_path / "arlow")
        return
    import_model(folders / "model.gguf", tmp_path / "arlow")
    export_llama(tmp_path / "arlow", tmp_path / "back")
    back = tensors(tmp_path / "back")
    assert source.keys() == back.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in source.items())
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (folders / "source", tmp_path / "back"))
    assert {key: value for key, value in now.items() if was[key] != value}.keys() <= {"initializer_range"}
    source, other = AutoTokenizer.from_pretrained(folders / "source"), load_tokenizer(tmp_path / "back")
    assert other.chat_template == (source.chat_template or None)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(other, name) == getattr(source, name), name


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_tokenizer_out_of_gguf_gives_the_same_ids(name, data):
    tokenizer, other = through_gguf(name)
    special = sorted(tokenizer.all_special_tokens)
    parts = st.text(max_size=20) | st.sampled_from([*special, " 12 345", "\n\n  a", "the cat", "  "])
    text = "".join(data.draw(st.lists(parts, max_size=5)))
    assert other(text)["input_ids"] == tokenizer(text)["input_ids"]


def through_gguf(name: str, made={}):  # noqa: B006 - hypothesis asks for it at every text
    if name not in made:
        tokenizer = TOKENIZERS[name]()
        vocabulary = vocabulary_of(tokenizer, len(tokenizer) + 2, Path("a"))
        assert vocabulary.tokens[-1] == f"[PAD{len(tokenizer) + 1}]"
        made[name] = tokenizer, tokenizer_of(vocabulary.metadata(), Path("a"))
    return made[name]


@settings(max_examples=40)
@given(heads=st.integers(1, 4), half=st.integers(1, 5), bias=st.booleans())
def test_the_order_of_query_and_key_rows_is_llama_cpps_and_back(heads, half, bias):
    rows = torch.arange(heads * 2 * half)
    values = rows if bias else rows[:, None].expand(-1, 3)
    there = to_gguf_order(values, heads)
    assert torch.equal(to_llama_order(there, heads), values)
    for head in range(heads):  # channel i of Llama's head, which turns with i + half, comes to 2i, before its partner
        first = head * 2 * half
        of_head = there[first : first + 2 * half] if bias else there[first : first + 2 * half, 0]
        assert of_head.tolist() == [first + i + part * half for i in range(half) for part in (0, 1)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_goes_out_and_comes_in_as_it_is(tmp_path, dtype):
    source = write_llama(tmp_path / "source", dtype=getattr(torch, dtype))
    import_model(source, tmp_path / "arlow")
    export_gguf(tmp_path / "arlow", tmp_path / "model.gguf")
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds == {"F32", "F16" if dtype == "float16" else "BF16"}
    import_model(tmp_path / "model.gguf", tmp_path / "again")
    was, now = tensors(tmp_path / "arlow"), tensors(tmp_path / "again")
    assert all(torch.equal(now[name], tensor) and now[name].dtype == tensor.dtype for name, tensor in was.items())


def test_numbers_that_half_precision_cannot_hold_are_refused(tmp_path):
    import_model(write_llama(tmp_path / "source", initializer_range=1.0), tmp_path / "arlow")
    with pytest.raises(CheckpointError, match=r"values of .* are too large for torch.float16; export as bfloat16"):
        export_gguf(larger(tmp_path / "arlow"), tmp_path / "model.gguf", dtype="float16")
    assert not (tmp_path / "model.gguf").exists()


def larger(folder: Path) -> Path:
    from safetensors.torch import save_file

    scaled = {name: tensor * 1e6 for name, tensor in tensors(folder).items()}
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rewrite(source: Path, out: Path, *, change=lambda fields: None, quantise: str | None = None) -> Path:
    """Another GGUF file with the tensors and fields of one, after a change."""
    reader = gguf.GGUFReader(source)
    fields = {
        key: (field.contents(), field.types) for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }
    change(fields)
    writer = gguf.GGUFWriter(out, fields.pop("general.architecture")[0])
    for key, (value, types) in fields.items():
        writer.add_key_value(key, value, types[0], types[-1] if len(types) > 1 else None)
    for tensor in reader.tensors:
        if quantise and len(tensor.shape) > 1:
            kind = gguf.GGMLQuantizationType[quantise]
            writer.add_tensor(tensor.name, quantize(np.array(tensor.data), kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A GGUF file of a tiny model whose rows divide into the blocks of any quantisation."""
    root = tmp_path_factory.mktemp("plain")
    import_model(write_llama(root / "source"), root / "arlow")
    export_gguf(root / "arlow", root / "model.gguf")
    return root / "model.gguf"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_0", "Q5_1"])
def test_quantised_tensors_are_read_as_gguf_reads_them(plain, tmp_path, kind):
    import_model(rewrite(plain, tmp_path / "q.gguf", quantise=kind), tmp_path / "arlow")
    found = tensors(tmp_path / "arlow")["model.layers.0.mlp.up_proj.weight"]
    (stored,) = (one for one in gguf.GGUFReader(tmp_path / "q.gguf").tensors if one.name == "blk.0.ffn_up.weight")
    assert stored.tensor_type.name == kind
    assert torch.equal(found, torch.from_numpy(dequantize(stored.data, stored.tensor_type)))


def refusal(path: Path, out: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        import_model(path, out)
    assert not out.exists() and "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.3, 0.999])
def test_a_file_that_was_cut_is_refused(plain, tmp_path, share):
    content = plain.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    assert "cannot be read as GGUF, it is cut short or something else" in refusal(
        tmp_path / "cut.gguf", tmp_path / "out"
    )


def test_whatever_the_bytes_of_the_header_are_it_is_read_or_refused_in_one_sentence(plain, tmp_path):
    content, dice, sentences = plain.read_bytes(), random.Random(1), []
    header = gguf.GGUFReader(plain).data_offset
    for number in range(60):
        raw = bytearray(content)
        for _ in range(dice.choice([1, 1, 3])):
            raw[dice.randrange(header if number % 2 else 1200)] = dice.randrange(256)
        (tmp_path / "odd.gguf").write_bytes(raw)
        try:
            source = open_gguf(tmp_path / "odd.gguf")
            refuse_other_shapes(source.shapes, arlow_config(source.config, source.place), source.place)
            source.read_tokenizer()
        except CheckpointError as error:
            sentences.append(str(error))
    assert sentences and all("\n" not in sentence and len(sentence) < 1_000 for sentence in sentences)


STRING, UINT32 = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32
FLOAT32, BOOL, ARRAY = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.BOOL, gguf.GGUFValueType.ARRAY


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("general.architecture", ("gemma", [STRING]), "general.architecture 'gemma' is another architecture"),
        ("llama.expert_count", (8, [UINT32]), "llama.expert_count 8 is nothing that Arlow's decoder has"),
        ("llama.attention.sliding_window", (16, [UINT32]), "sliding_window 16 hides text"),
        ("llama.rope.dimension_count", (8, [UINT32]), "llama.rope.dimension_count 8 differs from the heads' width, 16"),
        ("llama.rope.scaling.type", ("yarn", [STRING]), "llama.rope.scaling.type 'yarn' cannot be read out of GGUF"),
        (
            "llama.block_count",
            (2, [UINT32]),
            "9 tensors that Llama does not have: model.layers.2.input_layernorm.weight",
        ),
        ("llama.block_count", ("3", [STRING]), "llama.block_count must be one number for all layers, got '3'"),
        ("llama.embedding_length", (0, [UINT32]), "hidden_size must be at least 1, got 0"),
        (
            "tokenizer.ggml.model",
            ("t5", [STRING]),
            "tokenizer.ggml.model 't5' cannot be read; known are gpt2 and llama",
        ),
        (
            "tokenizer.ggml.pre",
            ("unheard-of", [STRING]),
            "tokenizer.ggml.pre 'unheard-of' cuts text into words by a rule",
        ),
        ("tokenizer.ggml.eot_token_id", (5_000, [UINT32]), "eot_token_id 5000 is no token of the vocabulary"),
        ("tokenizer.ggml.eos_token_id", (5_000, [UINT32]), "eos_token_id (5000) must lie below vocab_size (320)"),
    ],
)
def test_metadata_that_arlow_cannot_be_is_refused_by_key_and_value(plain, tmp_path, key, value, sentence):
    path = rewrite(plain, tmp_path / "other.gguf", change=lambda fields: fields.update({key: value}))
    assert sentence in refusal(path, tmp_path / "out")


TYPE = "tokenizer.ggml.token_type"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda fields: fields.pop("tokenizer.ggml.merges"),
            "tokenizer.ggml.merges are missing, without which no text becomes one of the 61 tokens of more than one",
        ),
        (
            lambda fields: fields.update({TYPE: (fields[TYPE][0][:-1], fields[TYPE][1])}),
            "tokenizer.ggml.token_type has 319 entries for 320 tokens; download it again",
        ),
        (
            lambda fields: fields.update({"tokenizer.ggml.scores": ([0.0] * 321, [ARRAY, FLOAT32])}),
            "tokenizer.ggml.scores has 321 entries for 320 tokens; download it again",
        ),
        (
            lambda fields: fields.update({"tokenizer.chat_template": (3, [UINT32])}),
            "chat_template must be a string, or strings by their names, got 3; correct it, or remove it there",
        ),
    ],
)
def test_a_vocabulary_of_which_a_part_lacks_is_refused(plain, tmp_path, change, sentence):
    assert sentence in refusal(rewrite(plain, tmp_path / "other.gguf", change=change), tmp_path / "out")


def test_a_rotary_factor_without_a_type_is_linear_as_in_llama_cpp(tmp_path):
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    import_model(write_llama(tmp_path / "source", rope_parameters=linear), tmp_path / "arlow")
    export_gguf(tmp_path / "arlow", tmp_path / "linear.gguf")
    for name in ("factor", "older"):

        def change(fields, name=name):
            del fields["llama.rope.scaling.type"]
            if name == "older":
                fields["llama.rope.scale_linear"] = fields.pop("llama.rope.scaling.factor")

        path = rewrite(tmp_path / "linear.gguf", tmp_path / f"{name}.gguf", change=change)
        assert open_gguf(path).config["rope_parameters"] == linear
        written = [
            complete(server(tmp_path / f"{of}.gguf"), [5, *range(60, 120, 10)], 8, [0, 1, 2])[0]
            for of in (name, "linear")
        ]
        assert written[0] == written[1]


@pytest.mark.parametrize("name", ["smol", "llama3", "sentencepiece"])
def test_where_a_file_does_not_say_whether_bos_comes_first_llama_cpps_choice_is_taken(tmp_path, name):
    import_model(write_llama(tmp_path / "source", TOKENIZERS[name]()), tmp_path / "arlow")
    export_gguf(tmp_path / "arlow", tmp_path / "model.gguf")
    silent = rewrite(
        tmp_path / "model.gguf",
        tmp_path / "silent.gguf",
        change=lambda fields: fields.pop("tokenizer.ggml.add_bos_token"),
    )
    tokenizer = open_gguf(silent).read_tokenizer()
    ids = tokenizer("the cat")["input_ids"]
    assert len(ids) == complete(server(silent), "the cat", 1, [])[1]
    assert (ids[0] == tokenizer.bos_token_id) == (name != "smol")


def test_every_token_that_ends_an_answer_is_read(plain, tmp_path):
    ends = {"eot": 7, "eom": 9}
    fields = {f"tokenizer.ggml.{role}_token_id": (index, [UINT32]) for role, index in ends.items()}
    path = rewrite(plain, tmp_path / "ends.gguf", change=lambda others: others.update(fields))
    import_model(path, tmp_path / "arlow")
    settings = json.loads((tmp_path / "arlow" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 7, 9]


@pytest.mark.parametrize(
    ("ends", "back", "lost"),
    [([2, 0], [2, 0], []), ([2, 5, 0], [2, 5, 0], []), (0, [2, 0], []), ([2, 5, 0, 7, 9], [2, 5, 0], [7, 9])],
)
def test_the_ends_of_a_text_come_back_or_are_told(plain, tmp_path, ends, back, lost):
    folder = shutil.copytree(plain.parent / "arlow", tmp_path / "arlow")
    settings = json.loads((folder / "generation_config.json").read_text()) | {"eos_token_id": ends}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    lines = export_gguf(folder, tmp_path / "model.gguf")
    assert open_gguf(tmp_path / "model.gguf").generation_config.eos_token_id == back
    words = ", ".join(load_tokenizer(folder).convert_ids_to_tokens(lost))
    told = [f"llama.cpp will not end a text at {words}: GGUF has fields for three ends"]
    assert [line for line in lines if "will not end" in line] == told * bool(lost)


@pytest.mark.parametrize("end", ["eot", "eom"])
def test_llama_cpp_stops_at_every_end_that_is_written(plain, tmp_path, end):
    prompt, forbidden = [5, *range(60, 120, 10)], parts_of_characters(load_tokenizer(plain.parent / "arlow"))
    written, _ = complete(server(plain), prompt, 6, forbidden)
    last = next(place for place, token in enumerate(written) if place and token not in written[:place])
    ends = {"eot": [2, written[last]], "eom": [2, 0, written[last]]}[end]
    folder = shutil.copytree(plain.parent / "arlow", tmp_path / "arlow")
    settings = json.loads((folder / "generation_config.json").read_text()) | {"eos_token_id": ends}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    export_gguf(folder, tmp_path / "model.gguf")
    assert complete(server(tmp_path / "model.gguf"), prompt, 6, forbidden)[0] == written[: last + 1]


def test_a_quantisation_that_nobody_reads_is_refused_by_name(plain, tmp_path):
    content = plain.read_bytes()
    name = b"blk.0.ffn_up.weight"
    place = content.index(name) + len(name) + 4 + 16  # behind the number of dimensions and both of them
    assert content[place : place + 4] == b"\0\0\0\0"
    (tmp_path / "q.gguf").write_bytes(content[:place] + (99).to_bytes(4, "little") + content[place + 4 :])
    assert "is not a valid GGMLQuantizationType" in refusal(tmp_path / "q.gguf", tmp_path / "out")
    (tmp_path / "q.gguf").write_bytes(content[:place] + (26).to_bytes(4, "little") + content[place + 4 :])  # I32
    assert "quantisation that cannot be read: I32, as in blk.0.ffn_up.weight" in refusal(
        tmp_path / "q.gguf", tmp_path / "o"
    )


def test_an_unknown_rule_for_words_is_refused_at_the_export(tmp_path):
    tokenizer = smol_tokenizer()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["pre_tokenizer"]["pretokenizers"][0] = {"type": "Punctuation", "behavior": "Isolated"}
    tokenizer.backend_tokenizer.__setstate__(json.dumps(spec).encode())
    import_model(write_llama(tmp_path / "source", tokenizer), tmp_path / "arlow")
    with pytest.raises(CheckpointError, match=r"cuts text into words by a rule that llama.cpp has no name for"):
        export_gguf(tmp_path / "arlow", tmp_path / "model.gguf")


def with_metaspace(prepend_scheme: str):
    """As newer transformers writes Llama 2's tokenizer."""
    tokenizer = TOKENIZERS["sentencepiece"]()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["normalizer"] = None
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": prepend_scheme, "split": False}
    tokenizer.backend_tokenizer.__setstate__(json.dumps(spec | {"pre_tokenizer": metaspace}).encode())
    return tokenizer


@pytest.mark.parametrize("prepend_scheme", ["first", "always"])
def test_a_space_that_llama_cpp_would_put_elsewhere_is_refused_at_the_export(prepend_scheme):
    with pytest.raises(CheckpointError, match=f"by Metaspace's rule '{prepend_scheme}', llama.cpp also"):
        vocabulary_of(with_metaspace(prepend_scheme), 420, Path("a"))


@pytest.mark.parametrize("tokenizer", [TOKENIZERS["sentencepiece"], lambda: with_metaspace("never")])
def test_llama_cpp_puts_spaces_behind_special_tokens_as_the_tokenizer_does(tmp_path, tokenizer):
    import_model(write_llama(tmp_path / "source", tokenizer()), tmp_path / "arlow")
    export_gguf(tmp_path / "arlow", tmp_path / "model.gguf")
    reads, llama_cpp = load_tokenizer(tmp_path / "arlow"), server(tmp_path / "model.gguf")
    for prompt in ("the cat", " the cat", "the cat</s>the cat sat", "the cat</s> the cat", "the cat</s>\nthe cat"):
        assert complete(llama_cpp, prompt, 1, [])[1] == len(reads(prompt)["input_ids"]), prompt


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' cannot be said in GGUF, only silu"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'yarn' is not written",
        ),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_at_the_export(tmp_path, changes, sentence):
    import_model(write_llama(tmp_path / "source", **changes), tmp_path / "arlow")
    with pytest.raises(CheckpointError, match=sentence):
        export_gguf(tmp_path / "arlow", tmp_path / "model.gguf")
    export_llama(tmp_path / "arlow", tmp_path / "back")


def test_arlows_own_model_and_chat_template_run_in_llama_cpp(tmp_path):
    folder = write_text_checkpoint(tmp_path / "arlow")
    export_gguf(folder, tmp_path / "model.gguf")
    tokenizer = load_tokenizer(folder)
    chat = [
        {"role": "user", "content": "the <image> cat"},
        {"role": "assistant", "content": "sat"},
        {"role": "user", "content": "a"},
    ]
    plain_chat = [{**message, "content": message["content"].replace("<image>", "red")} for message in chat]
    expected = tokenizer.apply_chat_template(plain_chat, add_generation_prompt=True)["input_ids"]
    llama_cpp = server(tmp_path / "model.gguf", context=64)
    told = llama_cpp.handle_chat_completions({"messages": plain_chat, "max_tokens": 1, "temperature": 0})
    assert told["usage"]["prompt_tokens"] == len(expected)


def test_every_chat_template_of_a_tokenizer_with_several_is_written(tmp_path):
    tokenizer = smol_tokenizer()
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": tokenizer.chat_template + " "}
    import_model(write_llama(tmp_path / "source", tokenizer), tmp_path / "arlow")
    export_gguf(tmp_path / "arlow", tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    written = {key: fields[key].contents() for key in fields if key.startswith("tokenizer.chat_template")}
    assert written == {
        "tokenizer.chat_template": tokenizer.chat_template["default"],
        "tokenizer.chat_template.tool_use": tokenizer.chat_template["tool_use"],
        "tokenizer.chat_templates": ["tool_use"],
    }


def test_a_file_that_cannot_be_written_leaves_nothing(plain, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="nothing was left there"):
        export_gguf(plain.parent / "arlow", tmp_path / "file" / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_splits_cut_as_the_tokenizers_that_they_are_named_after():
    from tokenizers import Regex, pre_tokenizers

    def cut(name: str, text: str) -> list[str]:
        return [piece for piece, _ in pre_tokenizers.Split(Regex(SPLITS[name]), "isolated").pre_tokenize_str(text)]

    assert cut("llama-bpe", "I'm 12345 (x)\n\n") == ["I", "'m", " ", "123", "45", " (", "x", ")\n\n"]
    assert cut("qwen2", "I'm 123\n") == ["I", "'m", " ", "1", "2", "3", "\n"]
    assert cut("tekken", "camelCase 12") == ["camel", "Case", " ", "1", "2"]
