"""Model folders: whatever their files hold, they open or are refused in one sentence, before anything is computed."""

import copy
import json
import os
import random
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arlow_vl.cli import main
from arlow_vl.errors import CheckpointError, ResourceError
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.auto import ArlowTokenizerFast
from arlow_vl.models.folder_hashes import hash_text_tensors, sha256_of_weights
from arlow_vl.models.folder_writing import CHECKSUMS, find_changes, save_folder
from arlow_vl.models.folders import check_folder, load_text_model, load_tokenizer, load_vision_language_model
from tests.tiny_runs import SAMPLES, tiny_tokenizer, write_image_text_recipe, write_text_checkpoint

ANYTHING = (
    None,
    -1,
    0,
    7,
    10**9,
    10**30,
    "x",
    "",
    [],
    {},
    [1],
    [[]],
    {"a": {"b": [1]}},
    True,
    1.5,
    float("nan"),
    ["x"],
)
NEW_KEYS = ("dtype", "id2label", "quantization_config", "rope_scaling", "num_labels", "max_length", "unheard_of")
DAMAGED = ("[]", '"x"', "null", "5", "", "{", "[" * 100_000, '{"a": Infinity}', "{}")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A text model's folder, and a vision-language one built from it."""
    folder = tmp_path_factory.mktemp("good")
    text = write_text_checkpoint(folder / "arlow")
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=160)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(text, vision_config)
    processor = ArlowProcessor(ArlowImageProcessor.of_model(model.config), tiny_tokenizer())
    save_folder((model, processor), folder / "arlow_vl")
    return {"arlow": text, "arlow_vl": folder / "arlow_vl"}


@pytest.fixture
def folders(originals, tmp_path):
    return {kind: Path(shutil.copytree(folder, tmp_path / kind)) for kind, folder in originals.items()}


@pytest.fixture
def text(folders):
    return folders["arlow"]


@pytest.fixture
def product(folders):
    return folders["arlow_vl"]


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path, kind: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        (load_text_model if kind == "arlow" else load_vision_language_model)(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_file_that_is_no_json_object_of_its_kind_is_named(text, name, content):
    (text / name).write_text(content)
    if content == "{}" and name != "config.json":
        pytest.skip("the defaults are settings too")
    sentence = refusal(text, "arlow")
    assert name in sentence or (content == "{}" and "model of type None" in sentence)


def test_weights_in_fewer_bits_whose_library_is_missing_are_refused_in_a_sentence(text):
    """As a folder that `arlow checkpoint export --quantize int8` made, on a machine without torchao."""
    if find_spec("kernels") is not None:
        pytest.skip("kernels stands for the library that is missing")
    change_json(text / "config.json", quantization_config={"quant_method": "eetq", "weights": "int8"})
    sentence = refusal(text, "arlow")
    assert sentence.startswith(f"{text} holds weights in fewer bits, whose library is missing (")
    assert "requires kernels" in sentence and sentence.endswith("pip install 'arlow-vl[quant]'")


@pytest.mark.parametrize("command", ["fit", "verify-frozen", "export", "checkpoint export-text"])
def test_commands_that_want_the_weights_own_values_refuse_fewer_bits(folders, tmp_path, capsys, command):
    folder = folders["arlow_vl"] if command.startswith("check") else folders["arlow"]
    arguments = {
        "fit": ["--config", str(write_image_text_recipe(tmp_path, text_checkpoint=str(folder)))],
        "verify-frozen": [str(folder), str(folders["arlow_vl"])],
        "export": [str(folder), "--as", "llama", "--out", str(tmp_path / "out")],
        "checkpoint export-text": [str(folder), str(tmp_path / "out")],
    }[command]
    change_json(folder / "config.json", quantization_config={"quant_method": "eetq", "weights": "int8"})
    assert main([*command.split(), *arguments]) == 4
    told = f"{folder} holds weights in fewer bits; take the folder that they were made from\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_size": -5}, "vocab_size must be at least 1, got -5"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1,000,000,000, the weights have 2"),
        ({"vocab_size": 10**9}, r"embed_tokens.weight would be [1000000000, 32], the weights have [300, 32]"),
        ({"intermediate_size": 10**9}, "up_proj.weight would be [1000000000, 32]"),
        ({"head_dim": 10**8}, "k_proj.weight would be [100000000, 32]"),
        ({"hidden_size": "32"}, "'hidden_size' expected int, got str"),
        ({"rms_norm_eps": [1e-6]}, "'rms_norm_eps' expected float, got list"),
        ({"rope_parameters": 7}, "'rope_parameters'"),
        ({"dtype": 7}, "dtype"),
        ({"hidden_sise": 32}, "no field 'hidden_sise'; did you mean hidden_size?"),
        ({"model_type": ["arlow"]}, "model of type ['arlow']"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_file_and_field_at_once(text, changes, reason):
    change_json(text / "config.json", **changes)
    began = time.process_time()
    sentence = refusal(text, "arlow")
    assert time.process_time() - began < 3
    assert reason in sentence and str(text) in sentence


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 10**9}, {"vocab_size": 10**9}, {"vocab_size": -5}])
def test_from_pretrained_refuses_them_too(text, changes):
    change_json(text / "config.json", **changes)
    with pytest.raises(CheckpointError, match=r"num_hidden_layers|vocab_size|embed_tokens"):
        ArlowForCausalLM.from_pretrained(text)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        (None, {"text_config": [1]}, "'text_config'"),
        (None, {"vision_config": "test_vit"}, "'vision_config'"),
        (None, {"text_config": {"model_type": "llama"}}, "text_config must be of model_type 'arlow'"),
        (None, {"projector": "mpl"}, "'projector'"),
        ("text_config", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("vision_config", {"timm_name": "test_vti"}, "timm has no model 'test_vti'; did you mean test_vit"),
        ("vision_config", {"timm_name": "test_vit2"}, "do not fit config.json"),
        ("vision_config", {"image_size": 10**6}, "image_size must be"),
        ("vision_config", {"image_size": [160]}, "image_size must be"),
        ("vision_config", {"blocks": [99]}, "blocks"),
        ("vision_config", {"transform": {"mean": 5}}, "transform"),
    ],
)
def test_parts_of_a_vision_language_configuration_are_checked_alike(product, part, changes, reason):
    values = json.loads((product / "config.json").read_text())
    (values if part is None else values[part]).update(changes)
    (product / "config.json").write_text(json.dumps(values))
    sentence = refusal(product, "arlow_vl")
    assert reason in sentence and str(product) in sentence


@pytest.mark.parametrize(
    "changes", [{"eos_token_id": "2"}, {"suppress_tokens": [300]}, {"temperature": "warm"}, {"max_new_tokens": [1]}]
)
def test_settings_of_generation_are_checked(text, changes):
    change_json(text / "generation_config.json", **changes)
    assert f"generation_config.json: {next(iter(changes))} must be" in refusal(text, "arlow")


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": "../model.safetensors"}}'])
def test_a_damaged_index_is_named(text, index):
    (text / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(text, "arlow")


def place_in(dice: random.Random, node):
    """A container inside of the JSON value, at random, and a key of it."""
    key = dice.choice(list(node) if isinstance(node, dict) else range(len(node)))
    inner = node[key]
    return place_in(dice, inner) if isinstance(inner, dict | list) and inner and dice.random() < 0.7 else (node, key)


def mutate(dice: random.Random, content: dict) -> str:
    node, key = place_in(dice, content)
    what = dice.random()
    if what < 0.8:
        node[key] = dice.choice(ANYTHING)
    elif what < 0.9:
        del node[key]
    else:
        content[dice.choice(NEW_KEYS)] = dice.choice(ANYTHING)
    return json.dumps(content)


@pytest.mark.parametrize("kind", ["arlow", "arlow_vl"])
def test_whatever_the_json_files_hold_the_folder_opens_or_is_refused_in_one_sentence(folders, kind):
    folder, dice, sentences = folders[kind], random.Random(kind), []
    names = sorted(path.name for path in folder.glob("*.json") if path.name != CHECKSUMS)
    for _ in range(40):
        path = folder / dice.choice([*names, *["config.json"] * 4])
        good = path.read_text()
        path.write_text(mutate(dice, json.loads(good)))
        try:
            (load_text_model if kind == "arlow" else load_vision_language_model)(folder)
        except CheckpointError as error:
            sentences.append(str(error))
        path.write_text(good)
    assert sentences
    assert all("\n" not in sentence and len(sentence) < 1_000 for sentence in sentences)


def test_whole_numbers_in_the_place_of_weights_are_refused_by_name(text):
    def change(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)

    change_tensors(text, change)
    assert "1 tensors of whole numbers, which would be taken for weights, first model.norm.weight" in refusal(
        text, "arlow"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(text, value, dtype):
    def change(tensors):
        tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items()}
        tensors["model.norm.weight"][3] = value

    change_tensors(text, change)
    assert "not finite (NaN or infinite) in model.norm.weight of model.safetensors" in refusal(text, "arlow")


@pytest.mark.parametrize(
    "command",
    [
        ["caption", str(SAMPLES / "none.png"), "--model", "MODEL"],
        ["explain", str(SAMPLES / "none.png"), "--model", "MODEL"],
        ["verify-frozen", "TEXT", "MODEL"],
        ["checkpoint", "export-text", "MODEL", "OUT"],
    ],
)
def test_every_command_refuses_it_alike(folders, tmp_path, capsys, command):
    from PIL import Image

    image = tmp_path / "white.png"
    Image.new("RGB", (20, 20), "white").save(image)
    change_tensors(folders["arlow_vl"], lambda tensors: tensors["model.projector.fc1.weight"].fill_(float("nan")))
    places = {"MODEL": folders["arlow_vl"], "TEXT": folders["arlow"], "OUT": tmp_path / "out"}
    places[str(SAMPLES / "none.png")] = image
    assert main([str(places.get(word, word)) for word in command]) == 4
    out, err = capsys.readouterr()
    (sentence,) = (line for line in err.splitlines() if line.startswith("arlow: "))
    assert "not finite (NaN or infinite) in model.projector.fc1.weight" in sentence
    assert not out and not (tmp_path / "out").exists()


def test_a_saved_folder_has_the_checksum_and_the_size_of_each_file(product, capsys):
    checksums = json.loads((product / CHECKSUMS).read_text())
    assert checksums.keys() == {path.name for path in product.iterdir()} - {CHECKSUMS}
    assert checksums["model.safetensors"]["size"] == (product / "model.safetensors").stat().st_size
    assert checksums["model.safetensors"]["sha256"] == sha256_of_weights(product)
    assert find_changes(product) == []
    assert main(["checkpoint", "verify", str(product)]) == 0
    assert capsys.readouterr().out == "ok\n"


@pytest.mark.parametrize("as_run", ["", "hf", "best"])
def test_verify_names_the_files_that_differ_or_are_missing(product, tmp_path, capsys, as_run):
    if as_run:
        product = product.rename(tmp_path / as_run)
    raw = bytearray((product / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (product / "model.safetensors").write_bytes(raw)
    (product / "config.json").write_text((product / "config.json").read_text() + " ")
    (product / "merges.txt").unlink()
    assert main(["checkpoint", "verify", str(tmp_path if as_run else product)]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{product / 'config.json'}: ") and lines[0].endswith("were saved")
    assert lines[1:] == [
        f"{product / 'merges.txt'}: missing",
        f"{product / 'model.safetensors'}: SHA-256 differs from what was saved",
    ]


@pytest.mark.parametrize("as_run", [False, True])
def test_verify_names_settings_that_are_gone(product, tmp_path, capsys, as_run):
    if as_run:
        product = product.rename(tmp_path / "hf")
    (product / "config.json").unlink()
    assert main(["checkpoint", "verify", str(tmp_path if as_run else product)]) == 4
    assert capsys.readouterr().out == f"{product / 'config.json'}: missing\n"
    (product / CHECKSUMS).unlink()
    assert main(["checkpoint", "verify", str(tmp_path if as_run else product)]) == 4
    sentence = f"has no {CHECKSUMS}" if as_run else "holds no checkpoint (step-*.ckpt) and no model folder (hf, best)"
    assert f"{product} {sentence}" in capsys.readouterr().err


def test_a_folder_without_checksums_opens_but_cannot_be_verified(text, capsys):
    load_text_model(text)
    assert main(["checkpoint", "verify", str(text)]) == 4
    assert f"has no {CHECKSUMS}" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"config.json": 5}', '{"../x": {"sha256": "", "size": 0}}'])
def test_damaged_checksums_are_an_error(product, content, capsys):
    (product / CHECKSUMS).write_text(content)
    assert main(["checkpoint", "verify", str(product)]) == 4
    assert CHECKSUMS in capsys.readouterr().err


def test_a_folder_that_cannot_be_saved_leaves_nothing(originals, tmp_path):
    (tmp_path / "file").write_text("")
    model, tokenizer = load_text_model(originals["arlow"])
    with pytest.raises(ResourceError, match="nothing was left there"):
        save_folder((model, tokenizer), tmp_path / "file" / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("")
    with pytest.raises(ResourceError):
        save_folder((model, tokenizer), tmp_path / "full")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "kept.txt"]


def test_sharded_half_precision_linked_and_spaced_folders_open(text, tmp_path):
    model, tokenizer = load_text_model(text)
    half = tmp_path / "in two halves"
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(half, max_shard_size="60KB")
    tokenizer.save_pretrained(half)
    assert len(list(half.glob("*.safetensors"))) > 1
    assert load_text_model(half)[0].dtype == torch.bfloat16
    assert hash_text_tensors(half).keys() == hash_text_tensors(text).keys()
    assert sha256_of_weights(half) != sha256_of_weights(text)
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in text.iterdir():
        (linked / path.name).symlink_to(path)
    linked.chmod(0o555)
    assert hash_text_tensors(linked) == hash_text_tensors(text)
    assert torch.equal(load_text_model(linked)[0].lm_head.weight, model.lm_head.weight)


def test_verify_frozen_reads_shards_and_links(folders, tmp_path, capsys):
    model, processor = load_vision_language_model(folders["arlow_vl"])
    sharded = tmp_path / "a folder of shards"
    model.save_pretrained(sharded, max_shard_size="200KB")
    processor.save_pretrained(sharded)
    assert main(["verify-frozen", str(folders["arlow"]), str(sharded)]) == 0
    next(sharded.glob("*-00001-of-*.safetensors")).unlink()
    assert main(["verify-frozen", str(folders["arlow"]), str(sharded)]) == 4
    assert "is missing, but model.safetensors.index.json lists it" in capsys.readouterr().err


def test_settings_of_generation_and_of_the_tokenizer_go_through_the_vision_stage_and_back(text, tmp_path):
    settings = {"eos_token_id": [2, 6], "repetition_penalty": 1.3, "temperature": 0.4, "do_sample": True, "top_k": 7}
    settings |= {"suppress_tokens": [5, 7], "max_new_tokens": 9}
    change_json(text / "generation_config.json", **settings)
    tokenizer = ArlowTokenizerFast.from_pretrained(text, padding_side="left", eos_token="<|im_end|>")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(text)

    model = ArlowVLForConditionalGeneration.from_text_checkpoint(
        text, ArlowVisionConfig(timm_name="test_vit", image_size=160)
    )
    assert {key: getattr(model.generation_config, key) for key in settings} == settings
    model.stop_also_at([9])
    assert model.generation_config.eos_token_id == [2, 6, 9]
    processor = ArlowProcessor(ArlowImageProcessor.of_model(model.config), load_tokenizer(text))
    save_folder((model, processor), tmp_path / "hf")
    assert main(["checkpoint", "export-text", str(tmp_path / "hf"), str(tmp_path / "exported")]) == 0

    (was, words), (now, other) = load_text_model(text), load_text_model(tmp_path / "exported")
    assert now.generation_config.to_dict() == was.generation_config.to_dict()
    for name in ("padding_side", "eos_token", "pad_token", "chat_template", "model_max_length", "add_bos_token"):
        assert getattr(other, name) == getattr(words, name), name
    saved = [json.loads((folder / "tokenizer_config.json").read_text()) for folder in (text, tmp_path / "exported")]
    for told in saved:
        told.pop("processor_class", None)  # of a tokenizer that a processor held when it was saved
    assert saved[0] == saved[1]


def test_a_run_refuses_a_text_checkpoint_that_no_command_would_open(text):
    change_tensors(text, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="not finite"):
        check_folder(text, "arlow")


def test_opening_asks_no_network_for_a_folder_that_is_not_there(tmp_path):
    assert "holds no config.json" in refusal(tmp_path / os.urandom(4).hex(), "arlow")
