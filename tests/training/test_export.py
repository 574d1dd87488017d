"""A checkpoint of any run becomes the model folder that the run itself would have written."""

import pytest

from arlow_vl.cli import main
from arlow_vl.training.recipe import parse_recipe
from arlow_vl.training.run import fit
from tests.tiny_runs import weights_sha256, write_image_text_recipe, write_text_recipe

ADAPTED = '{"decoder": {"treatment": "lora", "rank": 2}, "cross_attention": "frozen"}'


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_text_recipe, ("--optim.ema", "0.9")),
        (write_text_recipe, ("--policy", ADAPTED)),
        (write_image_text_recipe, ()),
    ],
)
def test_the_export_of_the_last_checkpoint_is_the_product(write, options, tmp_path, capsys):
    run = tmp_path / "run"
    fit(parse_recipe(["--config", str(write(tmp_path)), "--run_dir", str(run), *options]))
    assert main(["checkpoint", "export", str(run), "--out", str(tmp_path / "model")]) == 0
    assert weights_sha256(tmp_path / "model") == weights_sha256(run / "hf")
    names = {path.name for path in (run / "hf").iterdir()}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names | {"README.md"}
    assert "loaded in a fresh process, its logits differ by" in capsys.readouterr().out


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, capsys):
    assert main(["checkpoint", "export", str(tmp_path), "--out", str(tmp_path / "model")]) == 4
    assert "holds no checkpoint; name a run folder, a step-*.ckpt" in capsys.readouterr().err
