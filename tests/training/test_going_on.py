"""A stage starts from the product of another, and from nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arlow_vl.errors import CheckpointError
from arlow_vl.models.folders import load_text_model, load_vision_language_model
from arlow_vl.training.build import check_beginning
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.tiny_runs import write_image_text_recipe, write_text_checkpoint, write_text_recipe

SHORT = ["--run.max_steps", "2", "--run.validate_every", "2"]


def run(config: Path, run_dir: Path, *options: str) -> Path:
    return fit(parse_recipe(["--config", str(config), "--run_dir", str(run_dir), *SHORT, *options]))


def without(config: Path, *keys: str, **more) -> Path:
    """The recipe without some keys and with others."""
    import yaml

    values = {key: value for key, value in yaml.safe_load(config.read_text()).items() if key not in keys}
    path = config.with_name(f"{config.stem}-again.yaml")
    path.write_text(yaml.safe_dump(values | more))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("text")
    config = write_text_recipe(folder)
    return config, run(config, folder / "first")


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("vision")
    config = write_image_text_recipe(folder)
    return config, run(config, folder / "first")


def test_text_pretraining_goes_on_from_a_text_model(text, tmp_path):
    config, first = text
    again = without(config, "tokenizer", "model", checkpoint=str(first))
    second = run(again, tmp_path / "second", "--optim.lr", "1e-12")
    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert load_text_model(second)[1].get_vocab() == load_text_model(first)[1].get_vocab()


def test_a_second_vision_stage_trains_the_encoder_and_leaves_the_rest(vision, tmp_path):
    config, first = vision
    policy = dict.fromkeys(("projector", "cross_attention", "decoder"), "frozen")
    policy["vision"] = {"treatment": "train", "lr": 1e-3}
    again = without(
        config,
        "text_checkpoint",
        "vision",
        "cache_features",
        checkpoint=str(first),
        policy=policy,
    )
    second = run(again, tmp_path / "second")
    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".vision." in name for name in changed)
    assert not any("running_" in name for name in changed)  # batch norms keep the statistics that they came with


def test_a_vision_stage_may_start_with_open_gates_and_the_text_stays(vision, tmp_path):
    config, _ = vision
    folder = run(without(config, model={"gate_opening": 0.6}), tmp_path / "run", "--optim.lr", "1e-9")
    model, _ = load_vision_language_model(folder)
    openings = [opening for pair in model.gate_openings().values() for opening in pair]
    assert len(openings) >= 2
    assert openings == pytest.approx([0.6] * len(openings), abs=1e-5)
    kept = load_file(folder / "model.safetensors")
    before = load_file(Path(parse_recipe(["--config", str(config)]).text_checkpoint) / "model.safetensors")
    text = {name: tensor for name, tensor in before.items() if "cross_block" not in name}
    assert all(torch.equal(kept[name.replace("model.", "model.language_model.", 1)], text[name]) for name in text)


def test_questions_are_learnt_after_captions_with_adapters_in_the_decoder(vision, tmp_path):
    config, first = vision
    policy = {"vision": "frozen", "projector": "train", "cross_attention": "train"}
    policy["decoder"] = {"treatment": "lora", "rank": 2, "lr": 1e-3}
    again = without(config, "text_checkpoint", "vision", checkpoint=str(first), policy=policy)
    second = run(again, tmp_path / "second")
    model, processor = load_vision_language_model(second)  # no trace of adapters
    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    layer = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert before.keys() == after.keys()
    assert not torch.equal(before[layer], after[layer])
    embedding = next(name for name in before if "embed_tokens" in name)
    assert torch.equal(before[embedding], after[embedding])
    assert processor.tokenizer.image_token_id == model.config.image_token_id


def broken(folder: Path, to: Path, change) -> Path:
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def nan(tensors):
    tensors["model.norm.weight"][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"), "layers.0.mlp.up_proj.weight"),
        (lambda tensors: tensors.update(stray=torch.zeros(1)), "stray"),
        (nan, "norm.weight"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}), "norm.weight"),
    ],
    ids=["missing", "unexpected", "not finite", "of another shape"],
)
def test_a_model_that_is_not_whole_is_refused_by_the_tensors_name(text, tmp_path, change, sentence):
    config, first = text
    damaged = broken(first, tmp_path / "damaged", change)
    with pytest.raises(CheckpointError, match=sentence):
        run(without(config, "tokenizer", "model", checkpoint=str(damaged)), tmp_path / "run")
    assert not (tmp_path / "run" / "steps.jsonl").exists()


def test_the_first_process_alone_hashes_what_a_run_begins_with(tmp_path, monkeypatch):
    folder = write_text_checkpoint(tmp_path / "text")
    (folder / "checksums.json").write_text(json.dumps({"model.safetensors": {"size": 1, "sha256": ""}}))
    with pytest.raises(CheckpointError, match="1 were saved"):
        check_beginning(folder, "arlow")
    monkeypatch.setattr("arlow_vl.training.build.is_first", lambda: False)
    check_beginning(folder, "arlow")


def test_a_vision_language_model_is_no_text_checkpoint_and_the_other_way_round(text, vision, tmp_path):
    config, seeing = vision
    with pytest.raises(CheckpointError, match=r"holds a model of type 'arlow_vl', expected 'arlow' \(.*`checkpoint`\)"):
        run(without(config, text_checkpoint=str(seeing)), tmp_path / "a")
    with pytest.raises(CheckpointError, match="holds a model of type 'arlow', expected 'arlow_vl'"):
        run(without(config, "text_checkpoint", "vision", checkpoint=str(text[1])), tmp_path / "b")


@pytest.mark.parametrize(
    ("drop", "more", "sentence"),
    [
        ((), {"checkpoint": "a/hf"}, "text_checkpoint and checkpoint are both given"),
        (("text_checkpoint",), {}, "text_checkpoint is missing"),
        (("text_checkpoint",), {"checkpoint": "a/hf"}, "vision is given beside checkpoint"),
        (("vision",), {}, "vision.weights must name a file"),
    ],
)
def test_an_image_text_recipe_says_what_it_starts_from_once(vision, drop, more, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_recipe(["--config", str(without(vision[0], *drop, **more))])


@pytest.mark.parametrize(
    ("drop", "more", "sentence"),
    [
        (("tokenizer",), {}, "tokenizer is missing"),
        (("model",), {}, "model is missing"),
        ((), {"checkpoint": "a/hf"}, "tokenizer is given beside checkpoint"),
        (("tokenizer",), {"checkpoint": "a/hf"}, "model is given beside checkpoint"),
    ],
)
def test_a_text_recipe_says_what_it_starts_from_once(text, drop, more, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_recipe(["--config", str(without(text[0], *drop, **more))])


def test_rows_longer_than_the_models_positions_are_refused(text, tmp_path):
    with pytest.raises(ValueError, match="row_length is 65, but the model has 64 positions; lower it, or raise"):
        run(text[0], tmp_path / "run", "--row_length", "65")


def test_a_run_that_was_begun_before_a_key_existed_goes_on(text, tmp_path):
    config, _ = text
    run_dir = tmp_path / "run"
    run(config, run_dir)
    import yaml

    written = yaml.safe_load((run_dir / "config.yaml").read_text())
    for key in ("ema", "schedule"):
        del written["optim"][key]
    del written["run"]["engine"]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(written))
    assert run(config, run_dir) == run_dir / "hf"


def test_keys_of_samples_are_the_same_lines_whatever_ran_before(text):
    lines = (text[1].parent / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[list[str], Path]:
    """A run of four steps at a constant rate, which can be made longer."""
    folder = tmp_path_factory.mktemp("finished")
    config = str(write_text_recipe(folder))
    words = ["--config", config, "--run.max_steps", "4", "--optim.schedule", "constant", "--run_dir"]
    fit(parse_recipe([*words, str(folder / "run")]))
    return words, folder / "run"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "steps.jsonl",
            "junk\n",
            r"steps.jsonl: line 1 is not as the run wrote it .*; put the file back, or remove it",
        ),
        ("steps.jsonl", '{"step": 1}\n{}\n', r"steps.jsonl: line 2 is not as the run wrote it"),
        ("steps.jsonl", b"\xff\n", r"steps.jsonl: line 1 is not"),
        ("metrics.csv", "a,b\n", r"metrics.csv: line 1 is not"),
        ("config.yaml", "stage: text\nrun: 3\noptim: 3\n", r"another recipe: .* was "),
        ("config.yaml", ("max_steps: 4", "max_steps: many"), r"run.max_steps was many and is 8"),
        ("config.yaml", ("warmup_steps: 2", "warmup_steps: null"), r"optim.warmup_steps was None and is 2"),
        ("hf", None, r"hf is a file, where a run has a folder; remove it"),
        ("checkpoints", None, r"checkpoints is a file, where a run has a folder"),
    ],
)
def test_what_others_changed_in_a_run_folder_is_named_before_the_run_goes_on(
    finished, tmp_path, name, content, sentence
):
    words, run = finished
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / name
    if content is None:
        shutil.rmtree(path)
        path.touch()
    elif isinstance(content, tuple):
        path.write_text(path.read_text().replace(*content))
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=sentence):
        fit(parse_recipe([*words, str(tmp_path / "run"), "--run.max_steps", "8"]))


def test_a_run_is_not_made_shorter_than_it_is(finished, tmp_path):
    words, run = finished
    shutil.copytree(run, tmp_path / "run")
    shorter = ["--run.max_steps", "2", "--run.validate_every", "2"]
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("validate_every: 4", "validate_every: 2"))
    with pytest.raises(ValueError, match=r"run.max_steps was 4 and is 2, but 4 steps are done"):
        fit(parse_recipe([*words, str(tmp_path / "run"), *shorter]))


def test_what_may_change_and_steps_to_skip_that_are_done_are_told(finished, tmp_path, capsys):
    words, run = finished
    shutil.copytree(run, tmp_path / "run")
    changes = ["--run.max_steps", "8", "--run.checkpoint_every", "1", "--run.skip_steps", "[1]"]
    fit(parse_recipe([*words, str(tmp_path / "run"), *changes]))
    told = capsys.readouterr().err
    assert "resumes with a change: run.checkpoint_every was 3 and is 1" in told
    assert "run.skip_steps: steps [1] are done already and stay as they are" in told
