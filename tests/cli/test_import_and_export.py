"""`arlow import` and `arlow export`: a decoder of another make through every command, and out again as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from arlow_vl.cli import main
from arlow_vl.models.auto import save_with_code
from arlow_vl.models.folder_writing import save_folder
from arlow_vl.models.folders import load_text_model
from tests.models.convert.made_llamas import TOKENIZERS, write_llama
from tests.tiny_runs import SAMPLES, TINY_MODEL, write_image_text_recipe, write_text_recipe

FOX = SAMPLES / "fox.jpg"
SHORT = {"max_steps": 2, "validate_every": 2, "checkpoint_every": 2, "threads": 1, "validation_samples": 2}


@pytest.fixture
def source(tmp_path):
    return write_llama(tmp_path / "source")


def run(*words) -> int:
    return main([str(word) for word in words])


def sentence(capsys) -> str:
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("arlow: "))
    return line


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("smol", "llama3")]


@pytest.mark.parametrize("name", ["sentencepiece", *SLOW])
def test_a_decoder_of_another_make_learns_to_see_and_comes_back_bit_for_bit(tmp_path, capsys, name):
    source, arlow = write_llama(tmp_path / "source", TOKENIZERS[name]()), tmp_path / "arlow"
    assert run("import", source, "--out", arlow, "--cross-attention-interval", 2) == 0

    # Its tokenizer serves a new text model, too.
    (tmp_path / "text").mkdir()
    model = {**TINY_MODEL, "max_position_embeddings": 256}
    assert (
        run("fit", "--config", write_text_recipe(tmp_path / "text", tokenizer=str(arlow), model=model, run=SHORT)) == 0
    )
    new, words = load_text_model(tmp_path / "text" / "run" / "hf")
    assert words.get_vocab() == AutoTokenizer.from_pretrained(arlow).get_vocab()
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(new.config, role) == getattr(words, role)
    assert new.config.image_token_id == words.convert_tokens_to_ids("<image>")

    (tmp_path / "vision").mkdir()
    recipe = write_image_text_recipe(tmp_path / "vision", text_checkpoint=str(arlow), run=SHORT, optim={"lr": 0.1})
    assert run("fit", "--config", recipe) == 0
    product = tmp_path / "vision" / "run" / "hf"
    assert type(AutoProcessor.from_pretrained(product).tokenizer).__name__ == "TokenizersBackend"
    assert run("verify-frozen", arlow, product) == 0
    capsys.readouterr()
    assert run("caption", "--model", product, FOX, "--max-new-tokens", 4, "--question", "what is <image>?") == 0
    assert capsys.readouterr().out.startswith(f"{FOX}: ")
    assert run("explain", FOX, "--model", product, "--max-new-tokens", 4, "--out", tmp_path / "heat.png") == 0

    assert run("export", product, "--as", "llama", "--out", tmp_path / "back") == 0
    told = "only the text part is exported: encoder, projector and cross-attention blocks stay behind"
    assert told in capsys.readouterr().out
    was, now = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert was.keys() == now.keys() and all(torch.equal(now[key], tensor) for key, tensor in was.items())
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "back" / file).read_text()) == json.loads((source / file).read_text())
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "back")]
    assert len({tokenizer.backend_tokenizer.to_str() for tokenizer in tokenizers}) == 1


def test_the_import_names_new_tokens_rows_and_the_template(source, tmp_path, capsys):
    assert run("import", source, "--out", tmp_path / "arlow") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{tmp_path / 'arlow'}: 3 layers, 113,216 parameters in float32, from {source}",
        "tokenizer: 320 tokens keep their ids; added behind them: <image> (320), <|pad|> (321)",
        "new embedding rows, each the mean of the others: 320 for <image>, 321 for <|pad|>",
        "padding is <|pad|>, as the source pads with what ends a text",
        "chat template: the source's own",
    ]


def test_a_chat_template_that_training_cannot_follow_is_told_at_the_import(tmp_path, capsys):
    tokenizer = TOKENIZERS["smol"]()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '\\n' }}{% endfor %}"
    assert run("import", write_llama(tmp_path / "source", tokenizer), "--out", tmp_path / "arlow") == 0
    assert "training on images will refuse the chat template" in capsys.readouterr().err


def test_a_place_that_is_taken_is_refused_before_anything_is_read(source, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("")
    for words in (["import", "nothing"], ["export", "nothing", "--as", "llama"]):
        assert run(*words, "--out", tmp_path / "full") == 2
        assert f"{tmp_path / 'full'} exists already and is not empty; name a new folder" in sentence(capsys)
    assert run("export", "nothing", "--as", "gguf", "--out", tmp_path / "full" / "kept.txt") == 2
    assert "kept.txt exists already; name a new file" in sentence(capsys)
    (tmp_path / "empty").mkdir()
    assert run("import", source, "--out", tmp_path / "empty") == 0


def test_the_folder_that_one_is_in_is_no_place_for_a_model(source, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", tmp_path / "here"):
        assert run("import", source, "--out", out) == 2
        told = f"{out} is the working directory, which the new folder would replace; name a new folder"
        assert sentence(capsys) == f"arlow: {told}"
    with pytest.raises(ValueError, match="is the working directory"):
        save_folder((), Path("."))
    assert not list(tmp_path.glob("**/.*")) and run("import", source, "--out", "model") == 0


def test_a_source_that_cannot_be_used_ends_with_the_status_of_a_bad_checkpoint(source, tmp_path, capsys):
    assert run("import", tmp_path / "nothing", "--out", tmp_path / "arlow") == 4
    assert "does not exist; name a folder with Llama's config.json, or a GGUF file" in sentence(capsys)
    assert run("export", source, "--as", "gguf", "--out", tmp_path / "a.gguf") == 4
    assert "holds a model of type 'llama', expected 'arlow'" in sentence(capsys)
    assert run("export", tmp_path, "--as", "llama", "--out", tmp_path / "back") == 4
    assert "holds no config.json" in sentence(capsys)
    assert run("import", source, "--out", tmp_path / "arlow", "--cross-attention-interval", 4) == 2
    assert "a cross-attention interval of 4 fits no block into 3 layers" in sentence(capsys)
    assert not (tmp_path / "arlow").exists()


def test_without_the_extra_a_gguf_file_says_what_to_install(source, tmp_path, capsys, monkeypatch):
    assert run("import", source, "--out", tmp_path / "arlow") == 0
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert run("import", tmp_path / "m.gguf", "--out", tmp_path / "other") == 2
    assert "pip install 'arlow-vl[convert]'" in sentence(capsys)
    assert run("export", tmp_path / "arlow", "--as", "gguf", "--out", tmp_path / "a.gguf") == 2
    assert "pip install 'arlow-vl[convert]'" in sentence(capsys)


LOAD = """
import json, sys, torch
sys.modules["arlow_vl"] = None  # importing it fails from here on
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = tokenizer("the cat <image> sat", return_tensors="pt")["input_ids"]
print(json.dumps([type(model).__name__, ids.tolist(), model(ids[:, :3]).logits.argmax(-1).tolist()]))
"""


@pytest.mark.slow
def test_an_imported_model_opens_with_its_code_where_the_package_is_missing(source, tmp_path):
    assert run("import", source, "--out", tmp_path / "arlow") == 0
    model, tokenizer = load_text_model(tmp_path / "arlow")
    save_with_code(model, tmp_path / "shipped")
    tokenizer.save_pretrained(tmp_path / "shipped")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "shipped")],
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ids = tokenizer("the cat <image> sat", return_tensors="pt")["input_ids"]
    expected = ["ArlowForCausalLM", ids.tolist(), model(ids[:, :3]).logits.argmax(-1).tolist()]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_an_export_is_a_llama_for_the_auto_classes(source, tmp_path):
    assert run("import", source, "--out", tmp_path / "arlow") == 0
    assert run("export", tmp_path / "arlow", "--as", "llama", "--out", tmp_path / "back", "--dtype", "bfloat16") == 0
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.bfloat16
    assert not any(report.values())


def test_a_path_through_a_file_is_refused(source, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for words in (["import", source], ["export", source, "--as", "llama"]):
        assert run(*words, "--out", tmp_path / "file" / "a") == 2
        assert "is a file; name another place" in sentence(capsys)
