"""What `arlow checkpoint export` writes for others: card, precision, fewer bits, shards; proved or not written."""

import json
import shutil
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from arlow_vl.cli import main
from arlow_vl.data.trained_prompts import read_trained_prompts
from arlow_vl.models import probe
from arlow_vl.models.folder_files import hash_model
from arlow_vl.models.open_model import open_model
from arlow_vl.models.probe import probe_logits
from arlow_vl.training.export import trained_of
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.evaluation.made_results import QUESTIONS, write_data, write_results
from tests.tiny_runs import write_image_text_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished vision run."""
    place = tmp_path_factory.mktemp("exported")
    options = ["--run_dir", str(place / "run"), "--run.watch.keep_best", "validation_loss"]
    return fit(parse_recipe(["--config", str(write_image_text_recipe(place)), *options])).parent


@pytest.fixture(autouse=True)
def same_process(monkeypatch):
    """A process takes ten seconds to import torch; test_export.py has those that are fresh."""

    def run(command, **_settings):
        monkeypatch.setattr(sys, "argv", command[2:])
        probe.main()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(probe.subprocess, "run", run)


def write_result(folder, model):
    """Half of the questions are answered right."""
    told = {"model": {"path": "hf", "sha256": hash_model(model)}}
    write_results(folder / "results", write_data(folder / "data"), QUESTIONS, {"model": lambda _item: "yes"}, **told)
    return folder / "results"


def test_the_card_says_what_the_run_and_its_scores_say(run, tmp_path, capsys):
    options = ["--scores", str(write_result(tmp_path, run / "hf")), "--license", "apache-2.0"]
    assert main(["checkpoint", "export", str(run), "--out", str(tmp_path / "birds"), *options]) == 0
    card = (tmp_path / "birds" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] == "image-text-to-text"
    assert header["license"] == "apache-2.0"
    assert header["metrics"] == ["accuracy"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert f"run.max_steps: {config['run']['max_steps']}" in card
    assert "Questions of easy-VQA" in card
    assert "50.0 [50.0, 50.0]" in card
    assert "shown no image" in card
    assert "| vision | " in card
    assert str(tmp_path) not in card, "no folder of the machine that it was trained on"
    assert main(["checkpoint", "verify", str(tmp_path / "birds")]) == 0


@pytest.mark.parametrize(
    ("place", "trained"),
    [
        ("checkpoints/step-000004.ckpt", "those of step 4 of 6."),
        ("hf", "those of step 6 of 6."),
        ("best", "the best by validation_loss ("),
    ],
)
def test_the_card_says_what_the_weights_are_and_the_folder_how_they_were_asked(run, tmp_path, place, trained):
    copied = shutil.copytree(run, tmp_path / "run")
    if place != "hf":  # as of a run that goes on
        shutil.rmtree(copied / "hf")
    assert main(["checkpoint", "export", str(copied / place), "--out", str(tmp_path / "birds")]) == 0
    assert f"\n\nIts weights are {trained}" in (tmp_path / "birds" / "README.md").read_text()
    assert read_trained_prompts(tmp_path / "birds") == read_trained_prompts(run / "hf") is not None


@pytest.mark.parametrize(
    ("file", "trained"),
    [(("stopped.json", '{"step": 4}'), "those of step 4 of 6"), (("unfinished", ""), "those of the run before it was")],
)
def test_hf_of_a_run_that_ended_early_or_is_made_longer_is_not_of_its_last_step(run, tmp_path, file, trained):
    (tmp_path / file[0]).write_text(file[1])
    assert trained_of(tmp_path / "hf", tmp_path, {"run": {"max_steps": 6}}).startswith(trained)


def test_the_code_of_the_card_runs(run, tmp_path, monkeypatch, capsys):
    """In the folder above, with an image of the name that it uses."""
    from PIL import Image

    assert main(["checkpoint", "export", str(run / "hf"), "--out", str(tmp_path / "birds")]) == 0
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("photo.jpg")
    code = (tmp_path / "birds" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize(
    ("option", "value", "of_original"),
    [("--precision", "bfloat16", 0.5), ("--quantize", "int8", 1.0), ("--quantize", "nf4", 1.0)],
)
def test_fewer_bits_are_fewer_bytes_and_the_change_is_measured(option, value, of_original, run, tmp_path, capsys):
    if (needed := {"int8": "torchao", "nf4": "bitsandbytes"}.get(value)) and find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    (tmp_path / "text.jsonl").write_text('{"text": "a small bird on a tree"}\n')
    options = [option, value, "--text", str(tmp_path / "text.jsonl")]
    assert main(["checkpoint", "export", str(run / "hf"), "--out", str(tmp_path / "small"), *options]) == 0
    told = capsys.readouterr().out
    assert "Bits per byte of 1 document: " in told
    assert told.split("Bits per byte")[1].split("\n")[0].strip() in (tmp_path / "small" / "README.md").read_text()
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert size < of_original * (run / "hf" / "model.safetensors").stat().st_size * 1.1
    model, whole = open_model(tmp_path / "small", device="cpu").model, open_model(run / "hf", device="cpu").model
    torch.testing.assert_close(probe_logits(model), probe_logits(whole), rtol=0, atol=0.3)


def test_fewer_bits_are_not_made_of_fewer_bits(run, tmp_path, capsys):
    if find_spec("torchao") is None:
        pytest.skip("needs torchao")
    small = str(tmp_path / "small")
    assert main(["checkpoint", "export", str(run / "hf"), "--out", small, "--quantize", "int8"]) == 0
    assert main(["checkpoint", "export", small, "--out", str(tmp_path / "again")]) == 4
    assert f"{small} holds weights in fewer bits; take the folder that they were made from" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_weights_come_in_shards(run, tmp_path):
    out = tmp_path / "sharded"
    assert main(["checkpoint", "export", str(run / "hf"), "--out", str(out), "--shard-size", "100KB"]) == 0
    assert len(list(out.glob("*.safetensors"))) > 1
    whole = open_model(run / "hf", device="cpu").model.state_dict()
    for name, tensor in open_model(out, device="cpu").model.state_dict().items():
        assert tensor.equal(whole[name]), name


def test_a_folder_that_answers_otherwise_is_not_left(run, tmp_path, monkeypatch, capsys):
    """The fresh process is shown other weights than those in memory."""
    honest = probe.subprocess.run

    def tampered(command, **settings):
        file = next(tmp_path.glob(".bad.partial/*.safetensors"))  # which has its name once it is proved
        tensors = load_file(file)
        name = next(name for name in tensors if "embed_tokens" in name)
        save_file({**tensors, name: tensors[name] + 0.1}, file, metadata={"format": "pt"})
        return honest(command, **settings)

    monkeypatch.setattr(probe.subprocess, "run", tampered)
    assert main(["checkpoint", "export", str(run / "hf"), "--out", str(tmp_path / "bad")]) == 4
    assert f"{tmp_path / 'bad'} answers differently in a fresh process" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_scores_of_another_model_are_refused(run, tmp_path, capsys):
    path = write_result(tmp_path, run / "hf") / "easy-vqa" / "metrics.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"model": {"path": "hf", "sha256": "0" * 64}}))
    options = ["--scores", str(tmp_path / "results")]
    assert main(["checkpoint", "export", str(run / "hf"), "--out", str(tmp_path / "out"), *options]) == 4
    assert "holds scores of another model (easy-vqa); evaluate the one that is exp" in capsys.readouterr().err
    for damage in ({"model": None}, {"scores": None}, {"scores": {"metrics": ["accuracy"]}}):
        path.write_text(json.dumps({**result, **damage}))
        assert main(["checkpoint", "export", str(run / "hf"), "--out", str(tmp_path / "out"), *options]) == 3
        assert "is missing or of another kind; run `arlow evaluate` again" in capsys.readouterr().err
    path.write_text("{}")
    assert main(["checkpoint", "export", str(run / "hf"), "--out", str(tmp_path / "out"), *options]) == 3
    assert "task is missing or of another kind" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("checkpoints/step-000004.ckpt", ()),
        (".", ("--precision", "bfloat16")),
        ("hf", ("--precision", "bfloat16")),
        ("hf", ("--quantize", "int8")),
    ],
)
def test_scores_of_the_product_are_refused_for_other_tensors_than_its_own(run, tmp_path, capsys, place, options):
    scores = ["--scores", str(write_result(tmp_path, run / "hf"))]
    assert main(["checkpoint", "export", str(run / place), "--out", str(tmp_path / "out"), *scores, *options]) == 4
    assert "holds scores of another model (easy-vqa); evaluate the one that is exp" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_leaves_the_folder(run, tmp_path, monkeypatch, capsys):
    from huggingface_hub import HfApi

    def unreachable(*_args, **_settings):
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    out = tmp_path / "out"
    assert main(["checkpoint", "export", str(run / "hf"), "--out", str(out), "--push", "me/birds"]) == 2
    assert "is written, but was not put on the hub: Name or service not known" in capsys.readouterr().err
    assert (out / "README.md").is_file()
