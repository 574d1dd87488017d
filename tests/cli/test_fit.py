"""`arlow fit` from the command line: one sentence and the right exit status for what is wrong."""

import pytest

from arlow_vl.cli import main
from tests.tiny_runs import write_image_text_recipe, write_text_recipe


@pytest.fixture
def config(tmp_path) -> str:
    return str(write_text_recipe(tmp_path))


def test_it_trains_and_says_where_the_model_lies(config, tmp_path, capsys):
    assert main(["fit", "--config", config, "--run.max_steps", "4"]) == 0
    out = capsys.readouterr().out
    assert f"trained model: {tmp_path / 'run' / 'hf'}" in out
    assert "step 4/4  validation loss" in out
    assert (tmp_path / "run" / "hf" / "model.safetensors").is_file()


def test_a_dry_run_says_what_would_be_trained_and_trains_nothing(config, tmp_path, capsys):
    assert main(["fit", "--config", config, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "decoder" in out and "train      float32" in out and "frozen     float32" in out
    assert "attention: sdpa in float32 on cpu" in out or "on cuda" in out
    assert "step: 192 tokens, 1" in out and "2 batches of 3x32" in out
    assert "run: 12 steps, 2,304 tokens" in out
    assert not (tmp_path / "run" / "steps.jsonl").exists() and not (tmp_path / "run" / "hf").exists()


def test_a_dry_run_counts_operations_of_what_is_trained(tmp_path, capsys):
    config = str(write_image_text_recipe(tmp_path))
    assert main(["fit", "--config", config, "--dry-run"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("step:", "operations:"))]
    assert "5 images" in told[0] and "GFLOP a step" in told[1]
    assert not (tmp_path / "features").exists()


def test_help_lists_the_keys_of_both_kinds_of_recipe(capsys):
    assert main(["fit", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: arlow fit --config RECIPE.yaml [--dry-run] [--KEY VALUE ...]" in out
    for key in ("--train_text", "--cache_features", "--optim.lr", "--run.max_steps"):
        assert key in out
    assert "Peak learning rate, reached after warm-up;" in out


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--optim.lerning_rate", "1"], 2, "unknown option --optim.lerning_rate"),
        (["--run.max_step", "4"], 2, "did you mean --run.max_steps?"),
        (["--model.hidden_sizes", "4"], 2, "ArlowConfig has no field 'hidden_sizes'; did you mean hidden_size?"),
        (["--model.vocab_size", "12"], 2, "model.vocab_size is 12"),
        (["--policy.decoder", "qlora"], 2, "policy.decoder is qlora, not one of frozen, train, lora"),
        (["--train_text", "nowhere.jsonl"], 3, "nowhere.jsonl"),
        (["--row_length", "1000000"], 2, "row_length is 1000000, but the model has 64 positions"),
        (["--tokenizer", "nowhere"], 4, "nowhere holds no tokenizer.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_exit_status(config, capsys, options, status, sentence):
    assert main(["fit", "--config", config, *options]) == status
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("arlow: ")
    assert sentence in line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--confg", "a.yaml"], "unknown option --confg; did you mean --config?"),
        (["--config"], "--config has no value"),
        (["--config", "."], "recipe . is no file"),
        (["a.yaml"], "name a recipe with --config FILE.yaml"),
    ],
)
def test_a_recipe_that_is_not_named_is_asked_for(words, sentence, capsys):
    assert main(["fit", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


@pytest.mark.parametrize("below", ["", "/deep/er"])
def test_a_file_in_the_place_of_the_run_folder_is_named(config, tmp_path, capsys, below):
    (tmp_path / "a-file").touch()
    assert main(["fit", "--config", config, "--run_dir", f"{tmp_path}/a-file{below}"]) == 2
    assert f"run_dir is {tmp_path}/a-file{below}, but {tmp_path}/a-file is a file" in capsys.readouterr().err


def test_a_recipe_is_needed(capsys):
    assert main(["fit"]) == 2
    assert "--config FILE.yaml" in capsys.readouterr().err
