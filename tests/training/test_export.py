"""A checkpoint of any run becomes the model folder that the run itself would have written."""

import pytest

from arlow_vl.cli import main
from arlow_vl.data.trained_prompts import read_trained_prompts
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.forked import by_fork
from tests.tiny_runs import weights_sha256, write_image_text_recipe, write_text_recipe

ADAPTED = '{"decoder": {"treatment": "lora", "rank": 2}, "cross_attention": "frozen"}'


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_text_recipe, ("--optim.ema", "0.9")),
        (write_text_recipe, ("--optim.ema", "0.9", "--run.precision", "bf16-true")),
        (write_text_recipe, ("--policy", ADAPTED)),
        (write_image_text_recipe, ()),
    ],
)
def test_the_export_of_the_last_checkpoint_is_the_product(write, options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("arlow_vl.models.probe.subprocess", by_fork)
    run = tmp_path / "run"
    fit(parse_recipe(["--config", str(write(tmp_path)), "--run_dir", str(run), *options]))
    assert main(["checkpoint", "export", str(run), "--out", str(tmp_path / "model")]) == 0
    assert weights_sha256(tmp_path / "model") == weights_sha256(run / "hf")
    names = {path.name for path in (run / "hf").iterdir()}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names | {"README.md"}
    prompts = [read_trained_prompts(folder) for folder in (run / "hf", tmp_path / "model")]
    assert prompts[0] == prompts[1] and (prompts[0] is None) == (write is write_text_recipe)
    if prompts[0]:
        assert {task: list(of) for task, of in prompts[0].counts.items()} == {"caption": [""], "question": [""]}
    assert "loaded in a fresh process, its logits differ by" in capsys.readouterr().out


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, capsys):
    assert main(["checkpoint", "export", str(tmp_path), "--out", str(tmp_path / "model")]) == 4
    assert "holds no checkpoint; name a run folder, a step-*.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "words", "sentence"),
    [
        ("..", (), "exists already; name a new folder"),
        ("none/..", (), "exists already; name a new folder"),
        ("inner", (), "lies in the model that is exported; name a folder beside it"),
        ("out", ("--shard-size", "2XB"), "is a whole number of KB, MB, GB or TB, as 2GB, got '2XB'"),
        ("out", ("--shard-size", "0"), "is a whole number of KB, MB, GB or TB, as 2GB, got '0'"),
    ],
)
def test_a_place_or_a_size_that_cannot_be_is_refused_first(out, words, sentence, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["checkpoint", "export", str(tmp_path), "--out", str(tmp_path / out), *words]) == 2
    assert sentence in capsys.readouterr().err
