"""`arlow verify-frozen` and `arlow checkpoint export-text`: a verdict a line, and 4 with the tensor's name."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from arlow_vl.cli import main
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.folder_hashes import hash_text_tensors
from arlow_vl.models.folders import load_text_model
from tests.conftest import open_gates
from tests.tiny_runs import tiny_tokenizer, write_text_checkpoint


@pytest.fixture
def checkpoints(tmp_path):
    """A text checkpoint, and a vision-language model folder built from it."""
    text_checkpoint = write_text_checkpoint(tmp_path / "text")
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=160)
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(text_checkpoint, vision_config)
    open_gates(model)
    model.save_pretrained(tmp_path / "hf")
    processor = ArlowProcessor(ArlowImageProcessor(model.model.vision.data_config), tiny_tokenizer())
    processor.save_pretrained(tmp_path / "hf")
    return text_checkpoint, tmp_path / "hf"


def change_norm(folder) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.language_model.norm.weight"][3] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_untouched_text_model_passes_every_check(checkpoints, capsys):
    assert main(["verify-frozen", *map(str, checkpoints)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("ok ") for line in lines)


def test_a_changed_tensor_is_named_with_every_check_that_it_fails(checkpoints, capsys):
    change_norm(checkpoints[1])
    assert main(["verify-frozen", *map(str, checkpoints)]) == 4
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["FAILED"] * 5 + ["ok"]
    (sentence,) = (line for line in err.splitlines() if line.startswith("arlow: "))
    assert "5 of 6 checks failed" in sentence and "model.norm.weight" in sentence


@pytest.mark.parametrize(("change", "status"), [(lambda folder: None, 0), (change_norm, 4)])
def test_json_says_the_same(checkpoints, capsys, change, status):
    change(checkpoints[1])
    assert main(["verify-frozen", *map(str, checkpoints), "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is (status == 0)
    assert [check["holds"] for check in found["checks"]] == [status == 0] * 5 + [True]
    assert set(found["checks"][0]) == {"claim", "holds", "found"}


def test_checkpoints_in_the_wrong_order_are_refused(checkpoints, capsys):
    assert main(["verify-frozen", *map(str, reversed(checkpoints))]) == 4
    assert "holds a model of type 'arlow_vl', expected 'arlow'" in capsys.readouterr().err


def test_a_file_that_is_cut_short_is_an_error_with_its_name(checkpoints, capsys):
    path = checkpoints[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["verify-frozen", *map(str, checkpoints)]) == 4
    assert f"{path} (153,348 bytes) is cut short" in capsys.readouterr().err


def test_the_exported_text_model_has_the_original_tensors_and_tokenizer(checkpoints, tmp_path, capsys):
    text_checkpoint, checkpoint = checkpoints
    output = tmp_path / "exported"
    assert main(["checkpoint", "export-text", str(checkpoint), str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert hash_text_tensors(output) == hash_text_tensors(text_checkpoint)
    assert (output / "tokenizer.json").read_bytes() == (text_checkpoint / "tokenizer.json").read_bytes()
    (model, tokenizer), (original, _) = load_text_model(output), load_text_model(text_checkpoint)
    input_ids = torch.tensor([tokenizer("the cat sat on a mat").input_ids])
    assert torch.equal(model(input_ids).logits, original(input_ids).logits)


def test_an_export_never_writes_over_a_folder(checkpoints, capsys):
    text_checkpoint, checkpoint = checkpoints
    before = hash_text_tensors(text_checkpoint)
    assert main(["checkpoint", "export-text", str(checkpoint), str(text_checkpoint)]) == 2
    assert f"{text_checkpoint} exists already" in capsys.readouterr().err
    assert hash_text_tensors(text_checkpoint) == before


def test_a_text_checkpoint_holds_no_other_text_model(checkpoints, tmp_path, capsys):
    assert main(["checkpoint", "export-text", str(checkpoints[0]), str(tmp_path / "exported")]) == 4
    assert "expected 'arlow_vl'" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def write_text(folder, sentence="The cat saw a big red dog run over green hills. "):
    (folder / "held-out.jsonl").write_text(json.dumps({"text": sentence * 60}) + "\n")
    return folder / "held-out.jsonl"


def test_held_out_text_has_the_same_bits_a_byte_and_logits_before_and_after(checkpoints, capsys, tmp_path):
    words = ["verify-frozen", *map(str, checkpoints), "--text", str(write_text(tmp_path))]
    assert main([*words, "--output", str(tmp_path / "frozen.json")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.search(
        r"changes: (\S+) bits a byte before, (\S+) after; (\S+) nats a token \(single tokens: (\S+)\)", line
    )
    before, after, loss, entropy = map(float, found.groups())
    assert before == after > 0 and loss > entropy > 0  # a random model is worse than the frequencies of tokens
    kept = json.loads((tmp_path / "frozen.json").read_text())
    assert kept["holds"] and kept["checks"][-1]["found"] in line and len(kept["checks"]) == 7


def test_changed_text_is_found_on_held_out_text(checkpoints, capsys, tmp_path):
    change_norm(checkpoints[1])
    assert main(["verify-frozen", *map(str, checkpoints), "--text", str(write_text(tmp_path))]) == 4
    out = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"changes: (\S+) bits a byte before, (\S+) after", out)
    assert out.startswith("FAILED") and found[1] != found[2]


def test_text_that_is_too_short_is_refused(checkpoints, capsys, tmp_path):
    text = tmp_path / "short.jsonl"
    text.write_text('{"text": "The cat."}\n')
    assert main(["verify-frozen", *map(str, checkpoints), "--text", str(text)]) == 3
    assert "has 6 tokens, fewer than one row of 256; add text" in capsys.readouterr().err
