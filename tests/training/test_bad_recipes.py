"""What a recipe can say that no run could do: one sentence that names the key, before anything is computed."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from arlow_vl.cli import main
from arlow_vl.training.recipe_files import read_yaml
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.tiny_runs import write_image_text_recipe, write_text_recipe

INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> dict:
    return yaml.safe_load(write_text_recipe(tmp_path_factory.mktemp("text")).read_text())


@pytest.fixture(scope="module")
def image_text(tmp_path_factory) -> dict:
    return yaml.safe_load(write_image_text_recipe(tmp_path_factory.mktemp("image-text")).read_text())


def refusal_of(folder: Path, values: dict, capsys, *options: str) -> tuple[int, str]:
    """Exit status and the sentence, of a dry run."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**values, "run_dir": str(folder / "run")}))
    return run_arlow(capsys, "fit", "--config", str(path), "--dry-run", *options)


def run_arlow(capsys, *words: str) -> tuple[int, str]:
    status = main(list(words))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("arlow: ")]
    assert len(lines) == 1, lines
    return status, lines[0]


def changed(values: dict, key: str, value) -> dict:
    values = copy.deepcopy(values)
    *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
    place = values
    for part in path:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("run.seed", None, "run.seed is null; give it a value, or leave it out"),
        ("run.skip_steps", None, "run.skip_steps is null"),
        ("run.precision", None, "run.precision is null"),
        ("run.accumulate_grad_batches", None, "run.accumulate_grad_batches is null"),
        ("optim.warmup_steps", None, "optim.warmup_steps is null"),
        ("optim.betas", None, "optim.betas is null"),
        ("max_bad_fraction", None, "max_bad_fraction is null"),
        ("model", None, "model is null"),
        ("optim", [1], "optim must hold keys and values, got [1]"),
        ("run", 3, "run must hold keys and values, got 3"),
        ("run.engine", True, "run.engine must hold keys and values, got True"),
        ("run.watch", "often", "run.watch must hold keys and values, got 'often'"),
        ("train_text", "", "train_text is empty; give it a value, or leave it out"),
        ("run_dir", " ", "run_dir is empty"),
        ("tokenizer", "", "tokenizer is empty"),
        ("optim.lr", INF, "optim.lr is inf; give a finite number"),
        ("optim.weight_decay", INF, "optim.weight_decay is inf"),
        ("optim.betas", [NAN, 0.9], "optim.betas.0 is nan"),
        ("optim.betas", [-1, 0.9], "optim.betas must be at least 0 and below 1, got (-1.0, 0.9)"),
        ("optim.betas", [0.9, 1.0], "optim.betas must be at least 0 and below 1, got (0.9, 1.0)"),
        ("run.skip_steps", [13], "run.skip_steps is [13], but the run has 12 steps"),
        ("max_tokens", "many", 'max_tokens": Expected a int or null. Got value: many'),
        ("max_tokens", "", 'max_tokens": Expected a int or null. Got value:'),
        ("run.engine.devices", 3, "which 3 data ranks cannot share evenly"),
        ("run.watch.keep_best", "validation_los", "did you mean validation_loss?"),
    ],
)
def test_a_value_that_no_field_can_take_is_named_with_its_key(text, tmp_path, capsys, key, value, sentence):
    values = changed(text, key, value)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | ({"run_dir": str(tmp_path / "run")} if key != "run_dir" else {})))
    status, line = run_arlow(capsys, "fit", "--config", str(path), "--dry-run")
    assert status == 2 and sentence in line


PACKING = {"row_tokens": 256, "row_images": 3, "rows_per_batch": 1}


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("vision", None, "vision is null"),
        ("max_length", None, "max_length is null"),
        ("max_length", 129, "max_length is 129, but the model has 128 positions; lower it"),
        ("sources", [None], "sources.0 is null"),
        ("sources.0", [], "sources.0 must hold keys and values, got []"),
        ("sources.0.kind", None, "sources.0.kind is null"),
        ("sources.1.name", None, "sources.1 has no name"),
        ("sources.0.data", "", "sources.0.data is empty"),
        ("sources.0.images", "nowhere", "source captions: images is nowhere, but there is no such folder"),
        ("vision.weights", "", "vision.weights must name a file of the encoder's weights, got ''"),
        ("vision.transform", {"mean": [0]}, "mean must be three numbers, got [0]"),
        ("vision.transform", {"std": [1, 0, 1]}, "std must be three numbers over 0"),
        ("packing", {}, "packing has no row_tokens"),
        ("packing", [], "packing must hold keys and values, got []"),
        ("packing", {"row_token": 1}, "packing: unknown key row_token; did you mean row_tokens?"),
        ("packing", PACKING | {"rows_per_batch": 0}, "packing.rows_per_batch must be at least 1, got 0"),
        ("packing", PACKING | {"by": "x"}, "packing.by: Expected a value of ['samples', 'tokens']"),
        ("packing", PACKING | {"temperature": INF}, "packing.temperature is inf"),
        ("policy.decoder", {"treatment": "lora", "rank": 33}, "its matrices have a rank of 32 at most; lower it"),
    ],
)
def test_so_is_one_of_a_recipe_with_images(image_text, tmp_path, capsys, key, value, sentence):
    status, line = refusal_of(tmp_path, changed(image_text, key, value), capsys)
    assert status in (2, 3) and sentence in line
    assert "class_path" not in line and "arlow_vl.training" not in line and "Union" not in line


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--run.seed", "null"), 'Parser key "run.seed": Expected a int. Got value: None'),
        (("--train_text", ""), "train_text is empty"),
        (("--run.engine", "3"), "run.engine: Unable to load config"),
        (("--optim.lr", ".inf"), "optim.lr is inf"),
    ],
)
def test_options_are_held_to_the_same(text, tmp_path, capsys, option, sentence):
    status, line = refusal_of(tmp_path, text, capsys, *option)
    assert status == 2 and sentence in line


def test_a_key_that_stands_twice_is_named_with_its_line(text, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(text) + "row_length: 16\n")
    assert run_arlow(capsys, "fit", "--config", str(path))[1].endswith(
        f"row_length is given twice, again in line {len(yaml.safe_dump(text).splitlines()) + 1}"
    )


def test_an_alias_of_itself_is_refused_and_others_are_read(text, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(text).replace("policy:", "policy: &p\n  self: *p"))
    assert "a value holds itself through an alias" in run_arlow(capsys, "fit", "--config", str(path))[1]
    path.write_text(
        yaml.safe_dump(text).replace("batch_size: 3", "batch_size: &n 3").replace("max_steps: 12", "max_steps: *n")
    )
    with pytest.raises(ValueError, match=r"must be a multiple of run.validate_every"):
        parse_recipe(["--config", str(path)])


def test_aliases_of_aliases_are_looked_into_once(tmp_path):
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]  # 9**29 values, written out
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(["a0: &a0 [x]", *lines]))
    assert len(read_yaml(path)) == 30


@pytest.mark.parametrize("batch", [10**12, 10**30])
def test_a_batch_that_cannot_fit_is_refused_with_what_it_takes_and_what_to_change(text, tmp_path, capsys, batch):
    status, line = refusal_of(tmp_path, text | {"batch_size": batch}, capsys)
    assert status == 6
    assert "the run needs more than the" in line and "weights 0.00" in line and "lower batch_size" in line


def test_so_is_a_model_before_it_has_weights(text, tmp_path, capsys):
    wide = {"hidden_size": 2**20, "num_attention_heads": 2**14, "num_key_value_heads": 2**14}
    status, line = refusal_of(tmp_path, text | {"model": text["model"] | wide}, capsys)
    assert status == 6 and "take a smaller model" in line


def test_memory_that_runs_out_in_a_step_is_told_with_what_the_run_takes(text, tmp_path, capsys):
    from lightning.pytorch import Callback

    class Greedy(Callback):
        def on_train_batch_start(self, *_):
            torch.empty(2**50)

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(text | {"run_dir": str(tmp_path / "run")}))
    with pytest.raises(OSError, match=r"a step does not fit into .*192 tokens|96 tokens.*lower batch_size") as caught:
        fit(parse_recipe(["--config", str(path)]), callbacks=[Greedy()])
    assert caught.value.exit_code == 6


def test_a_schedule_that_does_not_come_to_its_rate_is_told(text, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    optim = {"lr": 1e-3, "warmup_steps": 100}
    path.write_text(yaml.safe_dump(text | {"run_dir": str(tmp_path / "run"), "optim": optim}))
    assert main(["fit", "--config", str(path), "--dry-run"]) == 0
    assert "optim.warmup_steps is 100, but the run has 12 steps" in capsys.readouterr().out


def test_settings_of_generation_that_could_not_be_saved_at_the_end_are_refused_at_the_start(
    image_text, tmp_path, capsys
):
    text = shutil.copytree(image_text["text_checkpoint"], tmp_path / "text")
    settings = json.loads((text / "generation_config.json").read_text())
    (text / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.4}))
    status, sentence = refusal_of(tmp_path, changed(image_text, "text_checkpoint", str(text)), capsys)
    assert status == 4
    assert f"{text / 'generation_config.json'}: these settings contradict each other" in sentence
