"""What was changed on disk between two starts is noticed, data also where size and time of the file were kept."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from arlow_vl.cli import main
from arlow_vl.errors import CheckpointError
from arlow_vl.training.export import open_source
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.starts import compare_data
from tests.tiny_runs import write_image_text_recipe, write_text_recipe
from tests.training.test_run import Interrupt, facts, start

NAMES = [f"{number}.bmp" for number in range(6)]


def change(path: Path, data: bytes) -> bytes:
    """Puts other bytes of the same number into a file, which keeps its time; gives those that were there."""
    before, old = path.stat(), path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    return old


@pytest.fixture
def photos(tmp_path) -> Path:
    """Uncompressed images of one size, each of another colour, and their captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (24, 24), (40 * number, 255 - 40 * number, 90)).save(folder / name)
    lines = [f"{name},Colour number {number}." for number, name in enumerate(NAMES)]
    (folder / "captions.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
    return folder


@pytest.fixture
def config(tmp_path, photos) -> str:
    source = {"name": "photos", "data": str(photos), "samples_per_batch": 3}
    return str(write_image_text_recipe(tmp_path, sources=[source], validation_sources=[source]))


def losses(run_dir: Path) -> list[float]:
    return [float.fromhex(json.loads(line)["loss"]) for line in (run_dir / "steps.jsonl").read_text().splitlines()]


def another(photos: Path) -> bytes:
    """An image of the same number of bytes that none of them is."""
    path = photos.parent / "another.bmp"
    Image.new("RGB", (24, 24), "white").save(path)
    return path.read_bytes()


def test_features_in_a_cache_are_not_those_of_an_image_that_was_there_before(config, photos, tmp_path):
    old, new, fresh = (tmp_path / name for name in ("old", "new", "fresh"))
    assert start(config, old) is None
    chunks = set((tmp_path / "features").rglob("chunk-*"))
    change(photos / NAMES[2], another(photos))
    assert start(config, new) is None
    assert start(config, fresh, "--cache_features", str(tmp_path / "fresh-features")) is None
    near = pytest.approx(losses(fresh), rel=1e-5)  # in a batch of other images features are rounded otherwise
    assert losses(new) == near and losses(old) != near
    (added,) = set((tmp_path / "features").rglob("chunk-*")) - chunks  # of the one image
    assert added.stat().st_size < min(chunk.stat().st_size for chunk in chunks)


@pytest.mark.parametrize("cache", [(), ("--cache_features", "null")], ids=["cached", "decoded"])
def test_a_run_does_not_go_on_with_another_image_and_does_with_its_own(config, photos, tmp_path, capsys, cache):
    assert start(config, tmp_path / "whole", *cache) is None
    stopped = ("--run_dir", str(tmp_path / "stopped"), *cache)
    assert start(config, tmp_path / "stopped", *cache, interrupt=Interrupt("batch ends", 4)) == 1
    old = change(photos / NAMES[0], another(photos))
    capsys.readouterr()
    assert main(["fit", "--config", config, *stopped]) == 2
    said = capsys.readouterr().err
    assert f"{photos}: {photos}/{NAMES[0]} has other bytes than when it was indexed; indexed again" in said
    assert f"arlow: source photos ({photos}) holds other training data than at the last start of the run" in said
    change(photos / NAMES[0], old)
    assert main(["fit", "--config", config, *stopped]) == 0
    assert facts(tmp_path / "stopped") == facts(tmp_path / "whole")


def test_a_text_run_does_not_go_on_with_another_text_and_does_with_its_own(tmp_path, capsys):
    config, text = str(write_text_recipe(tmp_path)), tmp_path / "train.jsonl"
    assert start(config, tmp_path / "whole") is None
    assert start(config, tmp_path / "stopped", interrupt=Interrupt("batch ends", 6)) == 1
    old = change(text, text.read_bytes().replace(b"cat", b"dog"))
    words = ["fit", "--config", config, "--run_dir", str(tmp_path / "stopped")]
    assert main(words) == 2
    assert f"arlow: source train ({text}) holds other training data than at the last start" in capsys.readouterr().err
    change(text, old)
    assert main(words) == 0
    assert facts(tmp_path / "stopped") == facts(tmp_path / "whole")


def test_other_validation_data_are_told_with_their_own_place(config, capsys):
    recipe = parse_recipe(["--config", config])
    held_out = dataclasses.replace(recipe.validation_sources[0], data="held-out")
    was, now = ({"photos": {"items": 6, "fingerprint": fingerprint}} for fingerprint in ("a", "b"))
    recipe = dataclasses.replace(recipe, validation_sources=[held_out])
    compare_data(recipe, {"validation": was, "training": was}, {"validation": now, "training": was})
    assert "source photos (held-out) holds other validation data than at" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_another_transform_or_other_settings_of_its_text_model(config, tmp_path):
    run, decoded = tmp_path / "run", ("--cache_features", "null")
    beside = tmp_path / "encoder.json"
    beside.write_text(json.dumps({"timm_name": "test_efficientnet", "data_config": {"mean": [0.1, 0.1, 0.1]}}))
    assert start(config, run, *decoded, interrupt=Interrupt("batch ends", 2)) == 1
    beside.rename(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match=r"settings: vision_config.transform.mean was \[0.1, 0.1, 0.1\] and is "):
        start(config, run, *decoded)
    with pytest.raises(CheckpointError, match=r"vision_config.transform.mean was"):
        open_source(run)
    (tmp_path / "elsewhere.json").rename(beside)
    settings = tmp_path / "text" / "config.json"
    written = settings.read_text()
    settings.write_text(written.replace('"rope_theta": 100000.0', '"rope_theta": 100.0'))
    with pytest.raises(CheckpointError, match=r"text_config.rope_parameters.rope_theta was 100000.0 and is 100.0"):
        start(config, run, *decoded)
    settings.write_text(written)
    assert start(config, run, *decoded) is None
